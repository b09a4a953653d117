"""Where the goldens are, and a loud word where they are not."""

import collections
import gc
import os
import shutil
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight devices for the tests of meshes; everything else runs on the first. XLA's newer code for
# fused operations takes three times as long to compile.
FLAGS = ("--xla_force_host_platform_device_count=8", "--xla_cpu_use_fusion_emitters=false")
for flag in FLAGS:
    if flag.partition("=")[0] not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
# XLA's thread pool has one thread a device, and a device that waits in a collective holds it. Two
# collectives of a program that do not depend on each other are entered in either order; with no
# thread left to enter the other, all wait until XLA ends the process after 40 seconds.
os.environ.setdefault("PJRT_NPROC", "32")
# Tests run small programs once or twice: compiling takes longer than running. So XLA optimises
# little, and each program is compiled once for all workers, the processes that tests start, and
# later runs. `make clean` empties the folder.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
PROGRAMS = Path(__file__).resolve().parents[1] / ".pytest_cache" / "programs"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
MOST = 4 * 2**30
"""Bytes of programs from which the folder is emptied first."""

import jax
import pytest

from tests import nightly

VARIABLE = "ADAPERCEIVER_GOLDENS"
GOLDENS = Path(
    os.environ.get(VARIABLE) or Path(__file__).resolve().parents[2] / "shared" / "goldens"
)


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of the reference's inputs and outputs; skips where there is none."""
    if not GOLDENS.is_dir():
        if os.environ.get(VARIABLE):
            pytest.fail(f"{VARIABLE}={os.environ[VARIABLE]} is not a folder")
        pytest.skip(f"no goldens in {GOLDENS}; set {VARIABLE}")
    return GOLDENS


def pytest_sessionstart(session):
    """Empties a folder of programs that has become large; before any worker reads it."""
    if not hasattr(session.config, "workerinput"):
        files = list(PROGRAMS.glob("*"))
        if sum(file.stat().st_size for file in files) > MOST:
            shutil.rmtree(PROGRAMS)


def pytest_collection_modifyitems(items):
    """Files with most slow tests come first, so that no worker is left alone with one of them at
    the end; UsageError for a mark that would have no effect."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
    for item in items:
        for mark in item.iter_markers("nightly"):
            if mark.args or mark.kwargs.get("group") not in nightly.TESTS:
                groups = ", ".join(nightly.TESTS)
                raise pytest.UsageError(f"{item.nodeid}: nightly(group=...) must name {groups}")
        if any(mark.name == "optimised" for mark in item.own_markers):
            raise pytest.UsageError(f"{item.nodeid}: only a module's pytestmark can be `optimised`")


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs(request):
    """Full optimisation for modules that count FLOPs, bytes or bits, and no more programs in memory
    than Linux has room for: each holds dozens of memory maps, of which a process may have 65,530.
    """
    optimised = request.node.get_closest_marker("optimised") is not None
    before = jax.config.values["jax_disable_most_optimizations"]
    if optimised:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    if optimised or memory_maps() > 30_000:
        jax.clear_caches()
        gc.collect()


def memory_maps() -> int:
    """Memory maps of this process; more than any limit where the system does not say."""
    try:
        return Path("/proc/self/maps").read_text().count("\n")
    except OSError:
        return 2**32


def pytest_terminal_summary(terminalreporter):
    unchecked = {
        other
        for report in terminalreporter.stats.get("skipped", [])
        for other in ("torch", "jax2onnx")
        if f"could not import '{other}'" in str(report.longrepr)
    }
    if unchecked:
        terminalreporter.section("CONVERSIONS WERE NOT CHECKED", red=True, bold=True)
        terminalreporter.line(
            f"{' and '.join(sorted(unchecked))} not installed: make test-all installs what they "
            "are checked against.",
            red=True,
        )
    skipped = [
        report
        for report in terminalreporter.stats.get("skipped", [])
        if "no goldens in" in str(report.longrepr)
    ]
    if skipped:
        terminalreporter.section("PARITY WITH THE REFERENCE WAS NOT CHECKED", red=True, bold=True)
        terminalreporter.line(
            f"{len(skipped)} parity tests were skipped: there are no goldens in {GOLDENS}. "
            f"Set {VARIABLE} to the folder that holds them.",
            red=True,
        )
