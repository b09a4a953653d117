"""What pages say is so: their Python runs, their links lead somewhere, what they name is there."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import jax
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.points import csv_text
from adaperceiver_jax.tasks.make import RunConfig, read_config
from adaperceiver_jax.train.settings import check_key, make_plan
from tests.test_commands import PAGES, blocks, texts

ROOT = Path(__file__).resolve().parents[1]
IMAGES = {"imagenet12k": 12_129_687, "imagenet2012": 1_281_167}
"""To train on, as published."""
SHELL = r'python -c "(.*?)"'
PAPERS = "pjajal/adaperceiver-v1-in1k-ft"


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_five_lines_of_the_readme_and_from_pytorch_to_a_prediction_run(
    monkeypatch, tmp_path, capsys
):
    """The hub's model is the paper's with made-up weights, of as many blocks as are needed."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 480), (200, 30, 30)).save("cat.jpg")
    for page, depth in (("README.md", 12), ("docs/weights.md", 1)):
        model = ap.AdaPerceiver(ap.AdaPerceiverConfig(depth=depth))
        params = jax.tree.map(lambda x: jax.numpy.ones(x.shape), ap.param_shapes(model))
        monkeypatch.setattr(ap, "from_pretrained", {PAPERS: (model, params)}.__getitem__)
        code = python_of(page)[0]
        assert len([line for line in code.splitlines() if line]) == 5
        exec(code, {})
    shape, prediction = capsys.readouterr().out.splitlines()
    assert shape.startswith("(2, 1000) ")
    assert 0 <= int(prediction) < 1000


@pytest.mark.slow
def test_the_python_about_adaptivity_runs(monkeypatch, tmp_path, capsys):
    load = ap.from_pretrained
    monkeypatch.setattr(ap, "from_pretrained", lambda name: load(ROOT / name))
    monkeypatch.chdir(tmp_path)
    points = [ap.Point(t, 32, 2, 0.5 + t / 1000, t / 1000) for t in (2, 4, 8)]
    Path("sweep.csv").write_text(csv_text(points))
    names: dict = {}
    for code in python_of("docs/adaptivity.md"):
        exec(code, names)
    assert names["left"].depth.tolist() == [6, 6]  # of a blank image nothing is sure
    assert names["best"] == points[1]
    assert capsys.readouterr().out.startswith("(2, 10) 5.7")
    saved = {path.name for path in (tmp_path / "my-small-adaperceiver").iterdir()}
    assert saved == {"config.json", "model.safetensors"}


@pytest.mark.slow
def test_the_python_of_the_quick_start_runs(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    (code,) = python_of("docs/quickstart.md")
    exec(code, {})
    *said, truth = capsys.readouterr().out.splitlines()
    assert [line.split(", ")[2].split(": ")[1] for line in said] == ["ring"] * 3
    assert truth == "it is a ring"


def check_imports(code: str) -> None:
    """It parses, and what it imports is there, but for the reference's own."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and not node.module.startswith("hub.networks"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def check_calls(text: str) -> None:
    """`ap` has what is called, with the keywords that it is given."""
    for name, arguments in re.findall(r"\bap\.((?:policies\.)?\w+)\(([^()]*)", text):
        place = ap.policies if name.startswith("policies.") else ap
        called = getattr(place, name.rpartition(".")[2])
        parameters = inspect.signature(called).parameters
        for keyword in re.findall(r"(\w+)=(?!=)", arguments):
            assert keyword in parameters, (name, keyword)


def test_python_of_all_pages_names_what_is_there():
    """Also of blocks that no test runs: it parses and imports, and `ap` has the names and takes
    what it is given."""
    for page in PAGES:
        if page.name != "contributing.md":  # tests/test_contributing.py puts that where it belongs
            for code in python_of(str(page.relative_to(ROOT))):
                check_imports(code)
    in_shell = [code for _, block in blocks() for code in re.findall(SHELL, block, re.DOTALL)]
    assert len(in_shell) >= 3
    for code in in_shell:
        check_imports(code)
    for path, text in texts():
        check_calls(text)
        for name in re.findall(r"\bap\.((?:policies\.)?\w+)", text):
            place = ap.policies if name.startswith("policies.") else ap
            assert hasattr(place, name.rpartition(".")[2]), (path, name)


def test_every_config_key_that_a_page_names_exists():
    names = set()
    for _, text in texts():
        names |= set(re.findall(r"\bconfig\.([a-z][a-z0-9_.]*[a-z0-9])\b(?!\()", text))
    names -= {"json", "py", "key"}  # files; any key
    assert len(names) > 15
    for name in sorted(names):
        check_key(RunConfig, name)


def test_every_file_that_a_page_names_exists():
    places = r"(?:adaperceiver_jax|configs|docs|experiments|tests|tools)"
    made = ("docs/contributing.md",)  # names files that its reader would make
    count = 0
    for path, text in texts():
        for name in re.findall(rf"`(?:python )?({places}/[\w./-]*\w)[/`: ]", text):
            if path in made and not (ROOT / name).exists():
                assert name.endswith(("npz.py", "stage4_more_tokens.py")), name
                continue
            assert (ROOT / name).exists(), (path, name)
            count += 1
    assert count > 60


def anchors(page: Path) -> set[str]:
    """Of a page's titles, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", title)) for title in titles)
    return {title.strip().lower().replace(" ", "-") for title in plain}


def test_links_lead_somewhere():
    for document, text in texts():
        path = ROOT / document
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        for link, anchor in re.findall(r"\]\((?!http)([^)#\s]*)#?([^)\s]*)\)", text):
            target = (path.parent / link).resolve() if link else path
            assert target.exists(), (path, link)
            if anchor:
                assert anchor in anchors(target), (path, link, anchor)


def rows_of(page: str, start: str) -> dict[str, list[str]]:
    """A table's rows, by their first cell, of the table that begins with `start`."""
    table = (ROOT / page).read_text().partition(start)[2].partition("\n\n")[0]
    cells = ([cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()[2:])
    return {first: rest for first, *rest in cells}


def test_hours_are_steps_times_what_a_step_takes():
    """In docs/pods.md; the README, which has every config, and the configs' heads say the same."""
    steps_of = rows_of("docs/pods.md", "| config | topology |")
    readme = rows_of("README.md", "| config | what is trained |")
    files = [path for path in ROOT.glob("configs/*.py") if "def get_config" in path.read_text()]
    assert set(re.findall(r"\w+", " ".join(readme))) == {path.stem for path in files}
    for name, (chips, _, steps, milliseconds, hours) in rows_of(
        "docs/pods.md", "| config | slice |"
    ).items():
        plain = name.partition(":")[0]
        config = read_config(f"configs/{name if ':' in name else name + ':'}".replace(":", ".py:"))
        count = make_plan(config, IMAGES.get(config.data.source.partition(":")[2], 1)).last
        assert steps == f"{count:,}", name
        assert milliseconds == steps_of[name][6], name
        low, high = (count * float(ms) / 3.6e6 for ms in milliseconds.split(" to "))
        said = " to ".join(f"{h:.1f}" if h >= 1 else f"{h:.2f}" for h in (low, high))
        assert hours == said, name
        assert readme[f"`{plain}`"][2] == f"{chips}: {said}", name
        assert f"{chips}, {said} hours" in (ROOT / f"configs/{plain}.py").read_text(), name
