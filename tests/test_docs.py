"""What the README says to type is typed."""

import importlib
import re
import shlex
from pathlib import Path

import jax
from PIL import Image

import adaperceiver_jax as ap

ROOT = Path(__file__).resolve().parents[1]


def test_the_readmes_python_runs(tmp_path, monkeypatch, capsys):
    def from_pretrained(name):  # the paper's model, with made-up weights
        assert re.fullmatch(r"[\w-]+/[\w.-]+", name)
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig())
        return model, ap.init_params(model, jax.random.key(0))

    monkeypatch.setattr(ap, "from_pretrained", from_pretrained)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    names: dict = {}
    exec(code, names)
    assert capsys.readouterr().out.startswith("(2, 1000) ")
    assert names["left"].depth.tolist() == [21, 21]
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


def test_every_call_the_readme_names_exists():
    for document in ("README.md", "docs/weights.md"):
        for name in re.findall(r"\bap\.(\w+)", (ROOT / document).read_text()):
            assert hasattr(ap, name), name


def test_links_between_documents_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)
