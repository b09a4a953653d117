"""metrics.csv that goes on where a run goes on, the line on the screen, what compiling took."""

import random
import types

import jax
import pytest

from adaperceiver_jax.train import reports
from adaperceiver_jax.train.chips import peak_flops
from adaperceiver_jax.train.reports import (
    MetricsFile,
    Progress,
    clock,
    compiling,
    keep_programs,
    sub_network_name,
)


def write(folder, step, rows):
    file = MetricsFile(folder, step)
    for number, values in rows:
        file.write(number, values)


ROWS = [
    (2, {"loss": 0.1}),
    (4, {"loss": 1 / 3}),
    (6, {"loss": 5.0, "a/b": 7}),
    (8, {"loss": 1e-30}),
]
WHOLE = "step,loss,a/b\n2,0.1,\n4,0.3333333333333333,\n6,5.0,7.0\n8,1e-30,\n"


def text(folder) -> str:
    return (folder / "metrics.csv").read_bytes().decode().replace("\r\n", "\n")


@pytest.mark.parametrize(("killed", "saved"), [(0, 0), (1, 0), (2, 2), (2, 3), (3, 4), (4, 8)])
def test_a_run_that_was_killed_leaves_the_same_file(tmp_path, killed, saved):
    """It was killed after `killed` rows, and goes on from the step that was saved."""
    write(tmp_path, 0, ROWS[:killed])
    write(tmp_path, saved, [row for row in ROWS if row[0] > saved])
    assert text(tmp_path) == WHOLE
    MetricsFile(tmp_path, 0)  # a fresh run in this folder
    assert not (tmp_path / "metrics.csv").exists()


@pytest.mark.parametrize("torn", ["4,0.33333", "4", "6,5.0,7.", "\x00\x00"])
def test_a_last_line_that_was_not_wholly_written_is_dropped(tmp_path, torn):
    write(tmp_path, 0, ROWS[:1])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, ROWS[1:])
    assert text(tmp_path) == WHOLE


def test_times_and_names():
    assert [clock(s) for s in (0, 59.6, 61, 3700)] == ["0:00", "1:00", "1:01", "1:01:40"]
    assert sub_network_name((128, 624, 12)) == "t128_w624_l12"
    assert sub_network_name(None) == "whole"


def test_progress_says_how_far_how_fast_and_how_long(monkeypatch, capsys, devices):
    now = [0.0]
    monkeypatch.setattr(reports.time, "perf_counter", lambda: now[0])
    devices(2)
    progress = Progress(first=10, last=50, batch_size=8, flops=1e9, label="run")
    values = {"loss": 1.5, "token": 1.25, "grad_norm": 3.0, "update_norm": 1.0, "lr": 1e-3}
    now[0] = 100.0  # the compilation
    progress.show(20, values, progress.speed(20))
    now[0] += 4.0
    with progress.paused():  # an evaluation
        now[0] += 5.0
    speed = progress.speed(30)
    assert speed["images_per_second"] == pytest.approx(10 * 8 / 4)
    assert speed["images_per_second_per_chip"] == pytest.approx(10)
    assert speed["model_tflops_per_chip"] == pytest.approx(0.01)
    progress.show(30, values, speed)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("ETA ?")
    assert second == (
        "run step 30/50 (60%)  loss 1.5000 (token 1.25)  lr 0.001  20 images/s, 10 a chip, "
        "10 model GFLOP/s a chip  ETA 0:18"  # 20 steps of 0.9 s, evaluation included
    )


def test_progress_says_how_long_steps_waited_for_eigenvectors(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(reports.time, "perf_counter", lambda: now[0])
    waited = [0.0]
    progress = Progress(first=0, last=50, batch_size=8, flops=1e9, waited=lambda: waited[0])
    values = {"loss": 1.5, "lr": 1e-3}
    spans = []
    for step, more in ((10, 0.0), (20, 0.5), (30, 0.0), (40, 1.0)):
        with progress.paused():  # a checkpoint, for which the hosts are waited for too
            now[0] += 5.0 + more
            waited[0] += more
        now[0] += 10.0 - more
        speed = progress.speed(step)
        spans.append(speed.get("waited_for_eigenvectors", 0.0))
        progress.show(step, values, speed)
    assert spans == pytest.approx([0, 0.05, 0, 0.1])
    said = ["eigenvectors waited for" in line for line in capsys.readouterr().out.splitlines()]
    assert said == [False, True, False, True]


def test_mfu_is_of_the_chips_own_peak():
    want = {"TPU v5 lite": 197e12, "TPU v5": 459e12, "TPU v5p": 459e12, "TPU v4": 275e12}
    want |= {"TPU v6 lite": 918e12, "NVIDIA H100 80GB HBM3": 989e12, "cpu": None}
    assert {kind: peak_flops(types.SimpleNamespace(device_kind=kind)) for kind in want} == want


def compile_one(seed: float) -> None:
    """Compiles a program that nothing else does."""

    @jax.jit
    def curious(x):
        return (x * seed).sum()

    curious(jax.numpy.ones(3))


@pytest.fixture
def _all_kept():
    name = "jax_persistent_cache_min_compile_time_secs"
    before = jax.config.values[name]
    jax.config.update(name, 0)
    yield
    jax.config.update(name, before)


@pytest.mark.usefixtures("_all_kept")
def test_kept_programs_are_told_apart_from_compiled_ones(monkeypatch, capsys):
    monkeypatch.setattr(reports, "_LONG", 0.0)
    seed = random.random()  # a time, rounded to float32, stays the same for two minutes
    for want in ("compiled curious in ", "read the kept curious in "):
        jax.clear_caches()
        with compiling():
            compile_one(seed)
        lines = capsys.readouterr().out.splitlines()
        assert next(line for line in lines if "curious" in line).startswith(want)
    assert lines[-1].startswith("compiled 0 programs and read ")


def test_programs_that_compile_fast_are_only_counted(capsys):
    with compiling():
        compile_one(random.random())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compiled ")
    compile_one(random.random())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("folder", "before", "want"),
    [("compiled", None, "{run}/compiled"), ("", None, None), ("compiled", "mine", "mine")],
)
def test_programs_are_kept_where_the_user_says_else_in_the_runs_folder(
    tmp_path, folder, before, want
):
    given = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", before)
        keep_programs(folder, tmp_path)
        assert jax.config.jax_compilation_cache_dir == (want and want.format(run=tmp_path))
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
