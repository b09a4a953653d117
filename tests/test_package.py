"""The package as a whole: what importing and installing it brings, and which way imports point."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.processes import environment

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "adaperceiver_jax"


def python(*arguments, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess:
    command = [sys.executable, *arguments]
    env = {**environment(), **variables}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env)


def test_a_plain_install_brings_no_tensorflow_and_no_pytorch():
    found, waiting = set(), ["adaperceiver_jax"]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        found.add(name)
        for line in importlib.metadata.requires(name) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    assert {"jax", "flax", "optax", "grain", "orbax-checkpoint"} <= found
    assert not found & {"tensorflow", "tensorflow-cpu", "torch", "timm", "torchvision"}


def test_importing_it_says_nothing_and_loads_neither():
    code = (
        "import sys, adaperceiver_jax as ap\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules)\n"
        "missing = [name for name in ap.__all__ if not hasattr(ap, name)]\n"
        "assert not missing, missing\n"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def imports(folder: Path) -> set[str]:
    """Dotted names of all that the files of a folder import."""
    names = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: a relative import"
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return names


@pytest.mark.parametrize("room", sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py")))
def test_rooms_import_what_the_page_says(room):
    page = (ROOT / "docs" / "architecture.md").read_text()
    (said,) = re.findall(rf"^\| `{room}/` \| .* \| (.*) \|$", page, re.MULTILINE)
    ours = [name for name in imports(PACKAGE / room) if name.startswith("adaperceiver_jax.")]
    assert {name.split(".")[1] for name in ours} - {room} == set(re.findall(r"\w+", said))


def test_the_package_imports_nothing_around_it():
    found = {name.partition(".")[0] for name in imports(PACKAGE)}
    assert not found & {"configs", "experiments", "main", "tests", "tools"}


def test_tools_import_from_the_checkout_that_they_lie_in():
    """An installed adaperceiver_jax may be another checkout's."""
    own = "\nsys.path.insert(0, str(Path(__file__).resolve().parents[1]))"
    for tool in (ROOT / "tools").glob("*.py"):
        text = tool.read_text()
        if 'if __name__ == "__main__":' in text:
            before, found, _ = text.partition(own)
            assert found, tool
            assert not re.search(r"^(from|import) (adaperceiver_jax|tools)\b", before, re.MULTILINE)


@pytest.mark.nightly(group="tools")
def test_the_benchmark_measures_the_papers_model():
    done = python("tools/benchmark.py", "--sub-networks", "8,416,1", "--repeats", "1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"measured: \d+ GFLOP/s in products of large float32", done.stdout)
    assert re.search(r"^forward +8 +416 +1 +1 .*\d%", done.stdout, re.MULTILINE)


@pytest.mark.nightly(group="tools")
def test_the_demo_trains_every_stage_and_writes_what_it_found(tmp_path):
    small = (
        "runlocal,length=2 steps,batch_size=8,data.train_count=16,data.validation_count=16,"
        "evaluation.batch_size=16,model.depth=2,model.token_granularities=(2,6),"
        "model.max_latent_tokens=6,optimizer.start_preconditioning_step=9"
    )
    command = ("tools/demo.py", "--workdir", tmp_path, "--config", small)
    done = python(*command)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "results.md").read_text()
    assert text in done.stdout
    for width in (16, 32, 64):
        assert f"## Width {width}: accuracy (%) and MFLOPs an image" in text
    assert len(re.findall(r"^\| (2|4 \(untrained\)|6) \|", text, re.MULTILINE)) >= 9
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 1 + 3 * 3 * 2
    for name in ("accuracy_flops.png", "tokens_width_depth.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
    for stage in ("stage1", "stage2", "stage3", "alone"):
        assert (tmp_path / stage / "model" / "model.safetensors").exists()
    assert "parameters loaded" in done.stdout
    assert "going on from step 2 of 2" in python(*command).stdout
    again = (tmp_path / "results.md").read_text()
    assert re.sub(r"[\d.]+ minutes", "", again) == re.sub(r"[\d.]+ minutes", "", text)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the sdist of what git knows of this checkout."""
    folder = tmp_path_factory.mktemp("built")
    tree = folder / "tree"
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in files.split("\0"):
        if (ROOT / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tree / name)
    done = python("-m", "build", "--no-isolation", "--outdir", folder, tree)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,), (sdist,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.mark.nightly(group="tools")
def test_the_wheel_is_the_package_and_the_sdist_all_that_is_needed(built):
    wheel, sdist = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        (metadata,) = (name for name in names if name.endswith("METADATA"))
        text = file.read(metadata).decode()
    wanted = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*.py")}
    wanted.add("adaperceiver_jax/py.typed")
    assert {name for name in names if ".dist-info/" not in name} == wanted
    assert any(name.endswith("LICENSE") for name in names)
    assert "# AdaPerceiver in JAX" in text
    with tarfile.open(sdist) as file:
        kept = {name.partition("/")[2] for name in file.getnames()}
    assert {
        *("main.py", "Makefile", "README.md", "LICENSE", "pyproject.toml", "docs/README.md"),
        *("configs/scenes.py", "tools/demo.py", "tests/test_package.py"),
        *("experiments/colab/quick_tour.ipynb", "docs/figures/accuracy_flops.png"),
        "experiments/colab/weights/classifier/model.safetensors",
    } <= kept


ELSEWHERE = """
import sys, time; began = time.perf_counter()
import flax.linen, jax, optax, orbax.checkpoint, huggingface_hub
others = time.perf_counter() - began
import adaperceiver_jax as ap
both = time.perf_counter() - began
assert ap.__file__.startswith(sys.argv[1]), ap.__file__
assert both < 2 * others, (both, others)
config = ap.AdaPerceiverConfig(embed_dim=16, num_heads=2, depth=2, image_size=28, num_classes=3,
    max_latent_tokens=4, token_granularities=(2, 4), widths=(8, 16))
model = ap.AdaPerceiver(config)
ap.save_pretrained(model, ap.init_params(model, jax.random.key(0)), "saved")
assert ap.from_pretrained("saved")[0] == model
"""


@pytest.mark.nightly(group="tools")
def test_the_wheel_works_without_the_repository(built, tmp_path):
    """Installed elsewhere, imported from elsewhere: quiet, and no more than twice as long as JAX,
    Flax and Orbax take, of which it consists."""
    place = tmp_path / "site"
    assert python("-m", "pip", "install", "-q", "--no-deps", "-t", place, built[0]).returncode == 0
    done = python("-c", ELSEWHERE, place, cwd=tmp_path, PYTHONPATH=str(place))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
