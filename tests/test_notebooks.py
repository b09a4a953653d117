"""The notebooks of experiments/colab, but for running them, which `make notebooks` does."""

import json
import re
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

import adaperceiver_jax as ap
from adaperceiver_jax.data.scenes import Scenes
from adaperceiver_jax.evaluate.sweep import sweep
from experiments.colab import run, setup
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "experiments" / "colab"


def notebook(name: str):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_notebook_is_run_begins_with_the_setup_and_keeps_outputs_of_no_machine():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(run.NAMES)
    for name in run.NAMES:
        book = notebook(name)
        nbformat.validate(book)
        assert book.cells[1].source == notebook("quick_tour").cells[1].source
        for output in (output for cell in book.cells for output in cell.get("outputs", [])):
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            said = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            assert not re.search(r"/(?:work|home|root|tmp|usr)/", said), said


@pytest.mark.slow
def test_the_table_of_the_readme_is_what_the_kept_weights_give():
    model, params = ap.from_pretrained(FOLDER / "weights" / "classifier")
    scenes = [*map(Scenes(4096, 32, "validation", difficulty=0.15).__getitem__, range(4096))]
    images = (np.stack([s["image"] for s in scenes]).astype(np.float32) / 255 - 0.5) / 0.25
    labels = np.array([s["label"] for s in scenes])
    batches = [(images[i : i + 512], labels[i : i + 512]) for i in range(0, len(images), 512)]
    tokens, depths = (2, 4, 8, 32), (1, 2, 4, 6)
    points = sweep(model, params, batches, tokens, (64,), depths)
    found = {(p.num_tokens, p.depth): (100 * p.accuracy, 1e3 * p.gflops) for p in points}
    text = (ROOT / "README.md").read_text()
    for t in tokens:
        (row,) = re.findall(rf"^\| {t} \| (.*) \|$", text, re.MULTILINE)
        for l, cell in zip(depths, row.split(" | "), strict=True):
            accuracy, mflops = map(float, re.fullmatch(r"([\d.]+) \(([\d.]+)\)", cell).groups())
            assert accuracy == pytest.approx(found[t, l][0], abs=0.11)  # rounding may turn a few
            assert mflops == pytest.approx(found[t, l][1], abs=0.051)


def test_setup_takes_the_extra_of_the_device():
    assert [setup.extra_for("", tpu) for tpu in (False, True)] == ["", "tpu"]
    found = [setup.extra_for(f"CUDA Version: {cuda} |", False) for cuda in ("12.4", "13.0")]
    assert found == ["cuda12", "cuda"]


def test_setup_installs_only_what_is_not_met(monkeypatch, capsys):
    installed = []
    monkeypatch.setattr(setup, "install", installed.append)
    setup.set_up()
    assert installed == []
    assert re.fullmatch(r"JAX [\d.]+ on \d+ x .+\n", capsys.readouterr().out)
    assert len(setup.requirements()) > 15
    some = ["jax>=0.8", "jax<0.1", "nothing_of_the_kind>=1", "odd>=1; sys_platform == 'plan9'"]
    assert setup.unmet(some) == some[1:3]
    monkeypatch.setattr(setup, "requirements", lambda: some)
    monkeypatch.setattr(setup, "nvidia_smi", lambda: "CUDA Version: 12.2")
    monkeypatch.setattr(setup, "has_tpu", lambda: False)
    setup.set_up()
    assert installed == ["cuda12"]


def test_setup_says_what_pip_could_not_do(monkeypatch):
    monkeypatch.setattr(setup, "ROOT", Path("/nowhere/at/all"))
    with pytest.raises(RuntimeError, match=r"(?s)pip install .*nowhere/at/all\[tpu\]:.*"):
        setup.install("tpu")


def test_setup_asks_for_a_restart_where_an_older_module_is_loaded(monkeypatch):
    old = types.ModuleType("PIL")
    old.__version__ = "1.0"
    assert setup.outdated([old, sys]) == ["pillow"]
    monkeypatch.setitem(sys.modules, "PIL", old)
    with pytest.raises(RuntimeError, match=r"pillow: this session has loaded an older .* restart"):
        setup.set_up()


@pytest.mark.nightly(group="tools")
def test_the_first_cell_fetches_and_installs_where_nothing_is(tmp_path):
    """As in Colab: an empty folder, a Python without the package, an uploaded archive."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True)
    with zipfile.ZipFile(tmp_path / "uploaded.zip", "w") as archive:
        for name in filter(None, files.stdout.decode().split("\0")):
            archive.write(ROOT / name, f"adaperceiver_jax/{name}")
    (tmp_path / "away").mkdir()
    python = tmp_path / "away" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "away"], check=True)
    cell = notebook("quick_tour").cells[1].source

    def first_cell(source: str):
        code = cell.replace('SOURCE = ""', f"SOURCE = {source!r}")
        return subprocess.run(
            [python, "-c", code], cwd=tmp_path, env=environment(), capture_output=True, text=True
        )

    assert "ValueError: SOURCE='': no repository here; give" in first_cell("").stderr
    assert "no file here, nor can git clone it" in first_cell("not/there.zip").stderr
    done = first_cell("uploaded.zip")
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"JAX [\d.]+ on 1 x .+\n", done.stdout)


def written(folder: Path, *sources: str) -> None:
    cells = [new_markdown_cell("# A title"), *(new_code_cell(source) for source in sources)]
    nbformat.write(new_notebook(cells=cells), folder / "tried.ipynb")


@pytest.fixture
def tried(tmp_path, monkeypatch):
    """Runs cells as a notebook of this folder; gives what it left."""
    monkeypatch.setattr(run, "FOLDER", tmp_path)
    monkeypatch.setattr(run, "LEFT", tmp_path / "left")
    monkeypatch.setattr(run, "NAMES", ("tried",))
    return lambda *arguments: run.main(["tried", "--out", str(tmp_path / "out"), *arguments])


@pytest.mark.slow
def test_a_notebook_that_gives_what_is_kept_passes(tried, tmp_path):
    written(tmp_path, "import sys\nprint(1)\nprint(2, file=sys.stderr)")
    tried("--write")
    kept = json.loads((tmp_path / "tried.ipynb").read_text())["cells"]
    assert [output["text"] for output in kept[1]["outputs"]] == [["1\n"]]
    left = tmp_path / "left" / "tried" / "checkpoint"
    left.mkdir(parents=True)
    tried()
    assert not left.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("print(1)", r"cell 1 gave \['text'\], kept in it is \[\]; if that is as it should"),
        ("raise ValueError('no such thing')", "ValueError: no such thing"),
        ("import time\ntime.sleep(60)", "takes more than 3 seconds"),
    ],
)
def test_another_cell_than_was_kept_or_one_that_fails_or_takes_too_long_is_said(
    tried, tmp_path, monkeypatch, source, said
):
    monkeypatch.setattr(run, "SECONDS", 3)
    written(tmp_path, source)
    with pytest.raises(SystemExit, match=said):
        tried()


def test_a_notebook_that_is_not_there_is_refused(capsys):
    with pytest.raises(SystemExit):
        run.main(["nothing"])
    assert "NAME=nothing: must be one of quick_tour, adaptivity" in capsys.readouterr().err
