"""Every command that a page, a config or a script shows is one."""

import argparse
import ast
import collections
import dataclasses
import importlib
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from adaperceiver_jax.tasks.config_file import read_config
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.train.settings import from_config, with_key

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md")])
NOT_INSTALLED = ("needs timm", "needs torch", "needs torchvision", "pip install -e '.[torch]'")
NO_ARGUMENTS = {"experiments.data_throughput.run", "experiments.dense_flops.run"}


class Understood(Exception):  # noqa: N818
    """A command line was taken; what it would begin is not begun."""


def commands() -> list[tuple[str, str, list[str]]]:
    """(document, module, arguments) of every line that begins with the call of a tool or an
    experiment, in code blocks of the README and docs and at the head of the scripts."""
    start = r"^ *(?:[A-Z_]+=\S* )*python (?:tools/(\w+)\.py|-m (experiments\.[\w.]+\w))(?![$\w])"
    command = re.compile(start + r"((?:.*\\+\n)*.*)$", re.MULTILINE)
    shell = re.compile(r'```sh\n(.*?)```|\A"""(.*?)"""', re.DOTALL)
    scripts = (*(ROOT / "tools").glob("*.py"), *(ROOT / "experiments").glob("*/*.py"))
    found = []
    for path in (*PAGES, *sorted(scripts)):
        for blocks in shell.findall(path.read_text()):
            for tool, experiment, rest in command.findall("".join(blocks)):
                words = shlex.split(re.sub(r"\\+\n", " ", rest), comments=True)
                words = list(itertools.takewhile(lambda word: word not in (">", "|"), words))
                name = f"tools.{tool}" if tool else experiment
                found.append((str(path.relative_to(ROOT)), name, words))
    return found


def outcome(name: str) -> argparse.Namespace | str:
    """What a script makes of its arguments, or why it came to none."""
    try:
        runpy.run_path(str(ROOT / f"{name.replace('.', '/')}.py"), run_name="__main__")
    except Understood as understood:
        return understood.args[0]
    except ModuleNotFoundError as error:
        return f"needs {error.name}"
    except SystemExit as error:
        return f"exits: {error}"
    return "read none"


def test_every_command_that_documents_and_scripts_give_is_understood(monkeypatch):
    """By the script's own parser; where a tool checks its arguments together, by that as well."""
    parse = argparse.ArgumentParser.parse_args

    def only_parse(parser, arguments=None, namespace=None):
        raise Understood(parse(parser, arguments, namespace))

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    understood: collections.Counter[str] = collections.Counter()
    wrong, expected = [], set()
    for document, name, words in commands():
        if (name in NO_ARGUMENTS and not words) or name == "tools.benchmark_data":
            continue  # absl parses the latter's, by tests of its own
        monkeypatch.setattr(sys, "argv", [name, *words])
        options = outcome(name)
        if isinstance(options, argparse.Namespace):
            module = importlib.import_module(name)
            monkeypatch.setattr(module, "have_torch", lambda: True, raising=False)
            getattr(module, "check_arguments", vars)(options)
            understood[document] += 1
            if name == "tools.prepare_data":
                expected.add(options.expect)
        elif not options.endswith(NOT_INSTALLED):
            wrong.append(f"{document}: {name} {shlex.join(words)}: {options}")
    assert wrong == []
    assert {"imagenet12k", None} <= expected
    with_torch = find_spec("torch") is not None
    assert understood["docs/performance.md"] >= (24 if with_torch else 11)
    assert sum(understood.values()) > (140 if with_torch else 110)


def blocks() -> list[tuple[str, str]]:
    """(document, shell) of every block that a page shows."""
    return [
        (str(page.relative_to(ROOT)), block)
        for page in PAGES
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", page.read_text(), re.DOTALL)
    ]


def test_shell_is_shell():
    assert len(blocks()) > 50
    for document, block in blocks():
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, (document, block, done.stderr)


def test_every_make_target_that_documents_name_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set()
    for page in (
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("experiments/*/README.md"),
    ):
        named |= set(re.findall(r"(?:^|`)make ([\w-]+)", page.read_text(), re.MULTILINE))
    assert {"demo", "test", "test-all", "notebooks", "lint"} <= named <= targets


def configs() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """(document, config, changes) of every command line with a config, `main.py`'s and tools', in
    shell blocks and at the head of configs and scripts; of `main.py`'s, the changes behind it."""
    heads = (*ROOT.glob("configs/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("experiments/*/*.py"))
    texts = blocks() + [
        (str(path.relative_to(ROOT)), ast.get_docstring(ast.parse(path.read_text())) or "")
        for path in sorted(heads)
    ]
    found = []
    for document, text in texts:
        text = re.sub(r"\\+\n", " ", text)
        for line in text.splitlines():
            named = re.findall(r"--config[= ](configs/[\w.]+(?::[^\s'\"]*)?)", line)
            changes = re.findall(r"--config\.([\w.]+)=(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", line)
            found += [(document, config, changes) for config in named]
    return found


def test_every_config_that_a_command_names_can_be_run_as_it_says():
    """With its argument and changes; folders and files need not be there."""
    seen = collections.Counter()
    for _, config, changes in configs():
        values = dataclasses.asdict(read_config(config))
        for key, text in changes:
            values = with_key(RunConfig, values, key, text.strip("'\""))
        from_config(RunConfig, values)
        seen[config.partition(":")[0]] += 1
    assert set(seen) == {f"configs/{name}.py" for name in config_names()}
    assert sum(seen.values()) > 50


def config_names() -> set[str]:
    """Of all configs that can be run."""
    files = ROOT.glob("configs/*.py")
    return {path.stem for path in files if "def get_config" in path.read_text()}
