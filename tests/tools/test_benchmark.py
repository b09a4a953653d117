"""What the benchmark measures and prints is of the programs that were asked for."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import adaperceiver_jax as ap
from tests.small_models import TINY, random_params
from tests.tools.conftest import read_csv
from tools import benchmark as tool
from tools import speed
from tools.speed import Ceiling

MODEL = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))


@pytest.fixture
def given(tmp_path, monkeypatch):
    """A folder with a small model, on a machine of 1 GFLOP/s and 1 GB/s."""
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: Ceiling(1e9, 1e9))
    ap.save_pretrained(MODEL, random_params(MODEL), tmp_path / "small")
    return tmp_path


@pytest.mark.slow
def test_a_row_a_sub_network_and_batch_whose_figures_hold_together(given, said):
    arguments = ("--sub-networks", "16,24,3", "4,8,1", "--batch", "1", "3", "--repeats", "4")
    path = given / "speed.csv"
    text = said(tool, "--checkpoint", given / "small", *arguments, "--csv", path)
    rows = read_csv(path)
    names = ("what", "num_tokens", "width", "depth", "batch", "dtype", "repeats")
    assert [" ".join(row[name] for name in names) for row in rows] == [
        f"forward {sizes} {batch} float32 4" for batch in (1, 3) for sizes in ("16 24 3", "4 8 1")
    ]
    assert len(text.splitlines()) == 3 + 1 + len(rows)
    for row in rows:
        t, w, l, batch = (int(row[n]) for n in ("num_tokens", "width", "depth", "batch"))
        flops = ap.flops(MODEL.config, t, w, l, batch_size=batch).total * batch
        seconds = float(row["median_ms"]) / 1e3
        rates = ("gflops", "images_per_second", "gflops_per_second", "of_ceiling")
        wanted = flops / 1e9, batch / seconds, flops / seconds / 1e9, flops / seconds / 1e9
        assert [float(row[name]) for name in rates] == pytest.approx(wanted, rel=1e-4)
        assert min(float(row["compile_s"]), float(row["memory_mib"])) > 0


def test_along_every_axis_where_no_sub_networks_are_named():
    assert tool.default_sub_networks(MODEL.config) == [
        *((t, 24, 3) for t in (16, 8, 4, 2)),
        *((16, 16, 3), (16, 8, 3), (16, 24, 2), (16, 24, 1), (2, 8, 1)),
    ]
    alone = ap.AdaPerceiverConfig(**{**TINY, "token_granularities": (), "widths": (), "depth": 1})
    assert tool.default_sub_networks(alone) == [(16, 24, 1)]


def test_other_models_have_one_row_and_any_dtype(given, sources, said):
    path = given / "speed.csv"
    arguments = ("--dtype", "bfloat16", "--repeats", "2", "--csv", path)
    assert "bfloat16" in said(tool, "--checkpoint", sources / "vit", *arguments)
    (row,) = read_csv(path)
    assert (row["dtype"], row["num_tokens"], row["batch"]) == ("bfloat16", "", "1")


@pytest.mark.nightly(group="tools")
def test_the_training_step_of_a_config(given, said):
    path = given / "speed.csv"
    config = "configs/stage3_width.py:runlocal,model.depth=2,optimizer.name=nadamw"
    said(tool, "--train", "--config", config, "--batch", "8", "--repeats", "2", "--csv", path)
    (row,) = read_csv(path)
    assert (row["what"], row["num_tokens"], row["batch"]) == ("train", "", "8")
    assert int(row["devices"]) == jax.device_count()
    assert float(row["gflops"]) > 0


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--sub-networks", "8,416"), "'8,416': must read like 128,624,14"),
        (("--sub-networks", "8,416,0"), "depth=0: must be in 1..21"),
        (("--batch", "0"), "must be at least 1"),
        (("--train",), "add --config="),
        (("--train", "--config", "configs/scratch.py", "--sub-networks", "8,416,1"), "takes no"),
        (("--config", "configs/none.py"), "there is no such file"),
        (("--checkpoint", "nowhere/at/all"), "nowhere/at/all"),
        (("--dtype", "int8"), "invalid choice"),
        (("--csv", "nowhere/speed.csv"), "there is no folder nowhere"),
    ],
)
def test_refusals(arguments, why, refused, monkeypatch):
    monkeypatch.setattr(speed, "measure_ceiling", lambda dtype: pytest.fail("began to measure"))
    monkeypatch.setattr(ap, "init_params", lambda *_: {})
    assert why in refused(tool, *arguments)


def test_what_does_not_fit_is_a_line_with_the_remedy_below_what_did(given, monkeypatch, capsys):
    """By the error that JAX really raises."""
    forwards, took = tool.forwards, iter([0, 2**47])

    def more_each_time(model, chosen, batch):
        (program,) = forwards(model, chosen, batch)
        size = next(took)
        call = jax.jit(lambda: jnp.zeros(size, jnp.uint8))
        return [dataclasses.replace(program, call=lambda: jax.block_until_ready(call()))]

    monkeypatch.setattr(tool, "forwards", more_each_time)
    arguments = ["--checkpoint", str(given / "small"), "--sub-networks", "4,8,1"]
    with pytest.raises(SystemExit, match=r"full: give a smaller --batch, .*\(RESOURCE_EXHAUSTED"):
        tool.main([*arguments, "--batch", "1", "2", "--repeats", "2"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [row[1:5] for row in rows if row[:1] == ["forward"]] == [["4", "8", "1", "1"]]
