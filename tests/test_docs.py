"""What the README says to type is typed."""

import importlib
import re
import shlex
from pathlib import Path

import jax
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import csv_text

ROOT = Path(__file__).resolve().parents[1]


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


def test_every_command_that_documents_give_is_understood(monkeypatch):
    command = re.compile(r"^python tools/(convert|export)\.py (.*?)(?:  +#.*)?$", re.MULTILINE)
    tried = 0
    for folder, kind in ((ROOT, "README.md"), (ROOT / "docs", "*.md"), (ROOT / "tools", "*.py")):
        for document in folder.glob(kind):
            for name, rest in command.findall(document.read_text()):
                tool = importlib.import_module(f"tools.{name}")
                monkeypatch.setattr(tool, "have_torch", lambda: True, raising=False)
                tool.check_arguments(tool.make_parser().parse_args(shlex.split(rest)))
                tried += 1
    assert tried > 8


def test_every_command_that_evaluates_or_predicts_is_understood():
    tools = "evaluate|predict|sweep|policies"
    command = re.compile(rf"^python tools/({tools})\.py ((?:.*\\\n)*.*)$", re.MULTILINE)
    found = []
    documents = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "tools").glob("*.py"))
    for document in documents:
        for name, rest in command.findall(document.read_text()):
            arguments = shlex.split(re.sub(r"\\+\n", " ", rest))
            found.append(importlib.import_module(f"tools.{name}").make_parser())
            found[-1].parse_args(arguments)
    assert len(found) >= 12


def test_every_command_that_prepares_data_is_understood():
    command = re.compile(r"^python tools/prepare_data\.py ((?:.*\\\n)*.*)$", re.MULTILINE)
    tool = importlib.import_module("tools.prepare_data")
    found = []
    for document in (*(ROOT / "docs").glob("*.md"), ROOT / "tools" / "prepare_data.py"):
        for rest in command.findall(document.read_text()):
            arguments = shlex.split(re.sub(r"\\+\n", " ", rest))
            found.append(tool.parser().parse_args(arguments))
    assert len(found) >= 3
    assert {"imagenet12k", None} <= {options.expect for options in found}


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
