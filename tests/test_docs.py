"""What the README says to type is typed."""

import re
from pathlib import Path

import jax

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


def test_every_call_the_readme_names_exists():
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\bap\.(\w+)", text):
        assert hasattr(ap, name), name


def test_links_between_documents_lead_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)", document.read_text()):
            assert (document.parent / link).exists(), (document.name, link)
