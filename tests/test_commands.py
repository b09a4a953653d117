"""Every command that a page, a config or a script shows is one."""

import argparse
import ast
import dataclasses
import importlib
import importlib.metadata
import itertools
import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from adaperceiver_jax.tasks.make import RunConfig, read_config
from adaperceiver_jax.train.settings import from_config, with_key

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("experiments/*/README.md")])
NOT_INSTALLED = ("needs timm", "needs torch", "needs torchvision", "pip install -e '.[torch]'")


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


def outcome(name: str) -> Any:
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
    understood, wrong = 0, []
    for document, name, words in commands():
        if name in ("experiments.dense_flops.run", "tools.benchmark_data"):
            continue  # takes none; absl parses its own
        monkeypatch.setattr(sys, "argv", [name, *words])
        options = outcome(name)
        if isinstance(options, argparse.Namespace):
            module = importlib.import_module(name)
            monkeypatch.setattr(module, "have_torch", lambda: True, raising=False)
            getattr(module, "check_arguments", vars)(options)
            understood += 1
        elif not options.endswith(NOT_INSTALLED):
            wrong.append(f"{document}: {name} {shlex.join(words)}: {options}")
    assert wrong == []
    assert understood > 85


def texts() -> list[tuple[str, str]]:
    """(document, text) of every page, and of the prose of every notebook."""
    found = [(str(page.relative_to(ROOT)), page.read_text()) for page in PAGES]
    for path in sorted(ROOT.glob("experiments/colab/*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        prose = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
        found.append((str(path.relative_to(ROOT)), "\n\n".join(prose)))
    return found


def blocks() -> list[tuple[str, str]]:
    """(document, shell) of every block that a page shows."""
    return [
        (document, block)
        for document, text in texts()
        for block in re.findall(r"```(?:sh|bash)\n(.*?)```", text, re.DOTALL)
    ]


def spans() -> list[tuple[str, str]]:
    """(document, code) of what stands between backticks within a line."""
    return [
        (document, span)
        for document, text in texts()
        for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    ]


def test_shell_is_shell():
    assert len(blocks()) > 50
    for document, block in blocks():
        done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
        assert done.returncode == 0, (document, block, done.stderr)


def test_every_make_target_and_extra_that_documents_name_exists():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    code = [code for _, code in blocks() + spans()]
    make = re.compile(r"(?:^|; )make ([\w-]+)", re.MULTILINE)
    named = {name for text in code for name in make.findall(text)}
    assert {"demo", "test", "test-all", "notebooks", "lint", "format"} <= named <= targets
    extras = set(importlib.metadata.metadata("adaperceiver_jax").get_all("Provides-Extra"))
    lists = [names for _, text in texts() for names in re.findall(r"\.\[([\w,]+)\]", text)]
    named = set(",".join(lists).split(","))
    assert {"tpu", "cuda", "cuda12", "torch", "dev"} <= named <= extras


def test_options_of_tools_between_backticks_are_there(monkeypatch):
    """Tables and sentences leave out values, so that only names are looked at."""

    def tell(parser, *_):
        raise Understood(parser._option_string_actions)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", tell)
    for document, span in spans():
        found = re.fullmatch(r"(?:python )?tools/(\w+)\.py (.*)", span)
        if found is None or found[1] == "benchmark_data":
            continue
        monkeypatch.setattr(sys, "argv", [found[1]])
        options = outcome(f"tools.{found[1]}")
        assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", found[2])) <= {*options}, (document, span)


def configs() -> list[tuple[str, list[tuple[str, str]]]]:
    """(config, changes) of every command line with a config, `main.py`'s and tools', in shell
    blocks and at the head of configs and scripts, and of every config between backticks. `main.py`
    must have the flags that it is given."""
    files = (*ROOT.glob("configs/*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("experiments/*/*.py"))
    heads = (ast.get_docstring(ast.parse(path.read_text())) or "" for path in files)
    found = []
    for text in (*(block for _, block in blocks()), *heads):
        for line in re.sub(r"\\+\n", " ", text).splitlines():
            flags = re.findall(r"(?<!\S)--([A-Za-z][\w-]*)", line.partition("main.py")[2])
            assert set(flags) <= {"config", "workdir", "distributed"}, line
            named = re.findall(r"--config[= ](configs/[\w.]+(?::[^\s'\"]*)?)", line)
            changes = re.findall(r"--config\.([\w.]+)=(\"[^\"]*\"|'[^']*'|[^\s'\"]+)", line)
            found += [(config, changes) for config in named]
    for _, span in spans():
        plain = span.partition(" --")[0]
        found += [(config, []) for config in re.findall(r"configs/\w+\.py:.*", plain)]
    return found


def test_every_config_that_a_command_names_can_be_run_as_it_says():
    """With its argument and changes; folders and files need not be there."""
    seen = set()
    for config, changes in configs():
        values = dataclasses.asdict(read_config(config))
        for key, text in changes:
            values = with_key(RunConfig, values, key, text.strip("'\""))
        from_config(RunConfig, values)
        seen.add(config.partition(":")[0])
    files = ROOT.glob("configs/*.py")
    runnable = {path for path in files if "def get_config" in path.read_text()}
    assert seen == {f"configs/{path.name}" for path in runnable}
