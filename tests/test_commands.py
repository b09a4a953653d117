"""What the README says to type is typed."""

import argparse
import collections
import importlib
import itertools
import re
import runpy
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

import jax
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import csv_text

ROOT = Path(__file__).resolve().parents[1]
NOT_INSTALLED = ("needs timm", "needs torch", "needs torchvision", "pip install -e '.[torch]'")
NO_ARGUMENTS = {"experiments.data_throughput.run", "experiments.dense_flops.run"}


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    def from_pretrained(name):  # the paper's model, with made-up weights
        assert re.fullmatch(r"[\w-]+/[\w.-]+", name)
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig())
        return model, ap.init_params(model, jax.random.key(0))

    monkeypatch.setattr(ap, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    points = [ap.Point(t, 624, 2, 0.5 + t / 1000, float(t)) for t in (8, 16, 32)]
    Path("sweep.csv").write_text(csv_text(points))
    first, second = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(first, names)
    assert capsys.readouterr().out.startswith("(2, 1000) ")
    assert names["left"].depth.tolist() == [21, 21]
    exec(second, names)
    assert names["best"] == points[1]
    assert capsys.readouterr().out.startswith("(2, 1000) [21 21] ")
    assert sorted(p.name for p in (tmp_path / "my-small-adaperceiver").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_the_five_lines_from_pytorch_to_a_prediction_run(tmp_path, monkeypatch, capsys):
    def from_pretrained(name):
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig(depth=1))
        return model, ap.init_params(model, jax.random.key(0))

    monkeypatch.setattr(ap, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 480), (200, 30, 30)).save("cat.jpg")
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs/weights.md").read_text(), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line]) == 5
    exec(code, {})
    assert 0 <= int(capsys.readouterr().out) < 1000


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
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted(scripts)):
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


def test_every_config_key_that_documents_name_exists():
    from adaperceiver_jax.tasks.make import RunConfig
    from adaperceiver_jax.train.settings import check_key

    names = set()
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        names |= set(
            re.findall(r"\bconfig\.([a-z][a-z0-9_.]*[a-z0-9])\b(?!\()", document.read_text())
        )
    names -= {"json", "py"}  # files
    assert len(names) > 15
    for name in sorted(names):
        check_key(RunConfig, name)


def test_every_call_the_readme_names_exists():
    for document in ("README.md", "docs/weights.md"):
        for name in re.findall(r"\bap\.(\w+)", (ROOT / document).read_text()):
            assert hasattr(ap, name), name


def test_links_between_documents_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)
