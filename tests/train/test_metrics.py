"""metrics.csv that goes on where a run goes on, and the line on the screen."""

import types

import pytest

from adaperceiver_jax.train import metrics
from adaperceiver_jax.train.chips import CHIPS, peak_flops
from adaperceiver_jax.train.metrics import MetricsFile, Progress, clock, sub_network_name


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


@pytest.mark.parametrize("saved", [0, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("killed", [0, 1, 2, 3, 4])
def test_a_run_that_was_killed_leaves_the_same_file(tmp_path, saved, killed):
    """Killed after as many rows, and gone on from the step that was saved."""
    write(tmp_path, 0, ROWS[:killed])
    saved = min(saved, ROWS[killed - 1][0] if killed else 0)
    write(tmp_path, saved, [row for row in ROWS if row[0] > saved])
    assert text(tmp_path) == WHOLE


@pytest.mark.parametrize("torn", ["4,0.33333", "4", "4,", "1", "6,5.0,7.", "\x00\x00"])
def test_a_last_line_that_was_not_wholly_written_is_dropped(tmp_path, torn):
    write(tmp_path, 0, ROWS[:1])
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write(torn)
    write(tmp_path, 3, ROWS[1:])
    assert text(tmp_path) == WHOLE


def test_a_fresh_run_starts_a_fresh_file(tmp_path):
    write(tmp_path, 0, ROWS)
    MetricsFile(tmp_path, 0)
    assert not (tmp_path / "metrics.csv").exists()


def test_times_and_names():
    assert [clock(s) for s in (0, 59.6, 61, 3700)] == ["0:00", "1:00", "1:01", "1:01:40"]
    assert sub_network_name((128, 624, 12)) == "t128_w624_l12"
    assert sub_network_name(None) == "whole"


def test_progress_says_how_far_how_fast_and_how_long(monkeypatch, capsys, devices):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    devices(2)
    progress = Progress(first=10, last=50, batch_size=8, flops=1e9, label="run")
    values = {"loss": 1.5, "token": 1.25, "grad_norm": 3.0, "update_norm": 1.0, "lr": 1e-3}
    now[0] = 100.0  # the compilation
    progress.show(20, values, progress.speed(20))
    now[0] += 9.0
    progress.pause(5.0)  # an evaluation
    speed = progress.speed(30)
    assert speed["images_per_second"] == pytest.approx(10 * 8 / 4)
    assert speed["images_per_second_per_chip"] == pytest.approx(10)
    assert speed["model_tflops_per_chip"] == pytest.approx(0.01)
    progress.show(30, values, speed)
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("ETA ?")
    assert second.startswith(
        "run step 30/50 (60%)  loss 1.5000 (token 1.25)  lr 0.001  20 images/s"
    )
    assert "10 a chip" in second
    assert second.endswith("ETA 0:18")  # 20 steps of 0.9 s, evaluation included


def test_progress_says_how_long_steps_waited_for_eigenvectors(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: now[0])
    progress = Progress(first=0, last=50, batch_size=8, flops=1e9)
    values = {"loss": 1.5, "lr": 1e-3}
    spans = []
    for step, waited in ((10, 0.0), (20, 0.5), (30, 0.5), (40, 1.5)):
        now[0] += 10.0
        speed = progress.speed(step, waited)
        spans.append(speed.get("waited_for_eigenvectors", 0.0))
        progress.show(step, values, speed)
    assert spans == pytest.approx([0, 0.05, 0, 0.1])
    said = ["eigenvectors waited for" in line for line in capsys.readouterr().out.splitlines()]
    assert said == [False, True, False, True]


@pytest.mark.parametrize(
    ("kind", "flops"),
    [
        ("TPU v5 lite", CHIPS["v5e"].flops),
        ("TPU v5", CHIPS["v5p"].flops),
        ("TPU v5p", CHIPS["v5p"].flops),
        ("TPU v4", CHIPS["v4"].flops),
        ("TPU v6 lite", CHIPS["v6e"].flops),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("cpu", None),
    ],
)
def test_mfu_is_of_the_chips_own_peak(kind, flops):
    assert peak_flops(types.SimpleNamespace(device_kind=kind)) == flops
