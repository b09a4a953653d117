"""The tables of docs/pods.md against today's code, most of it without compiling."""

import functools
import importlib.util
import math
import re
from pathlib import Path

import jax
import pytest

from adaperceiver_jax.tasks.make import read_config
from adaperceiver_jax.train.sharding import held
from tests.tools.test_compile_for_tpu import compiled
from tools.pod_report.topology import find_topology
from tools.shapes import make_step

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "pods.md").read_text()
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if re.match(r"\| \w+[^|]*\| v\d", line) and line.count("|") == 11
]
"""config, topology, data x fsdp, batch, HBM, TFLOPs, traffic, ms, MFU, not lean"""
HELD = re.findall(r"^\| (\w+\S*)" + r" \| ([\d.,]+)" * 4 + r" \|$", PAGE, re.MULTILINE)
"""config, MiB of parameters, EMA, optimizer, teacher"""


@functools.cache
def model_flops(config: str) -> float:
    """The model's FLOPs per image: the table's arguments change nothing in them."""
    step = make_step(read_config(config), jax.devices()[:1])
    return step.task.train_flops(step.apply[1])


@pytest.mark.nightly(group="pods")
def test_the_models_flops_are_todays_in_every_row():
    assert len(TABLE) > 25
    for row in TABLE:
        name, _, argument = row[0].partition(":")
        config = read_config(f"{ROOT}/configs/{name}.py:{argument}")
        assert row[3] == f"{config.batch_size:,}", row
        chips = math.prod(map(int, row[1].partition(":")[2].split("x")))
        data, fsdp = map(int, row[2].split(" x "))
        assert (data * fsdp, config.mesh.fsdp) == (chips, fsdp), row
        flops = model_flops(f"{ROOT}/configs/{name}.py") * config.batch_size / chips
        assert float(row[5].split(",")[0]) == pytest.approx(flops / 1e12, rel=5e-3), row


@pytest.mark.nightly(group="pods")
@needs_libtpu
def test_a_chip_holds_what_the_page_says_and_takes_its_command():
    devices = find_topology("v5e:16x16").devices
    assert len(HELD) >= 2
    for name, *amounts in HELD:
        stage, _, argument = name.partition(":")
        step = make_step(read_config(f"{ROOT}/configs/{stage}.py:{argument}"), devices)
        state = step.apply[0]
        parts = state.params, state.ema, state.opt_state, step.constants
        assert amounts == [f"{held(part) / 2**20:,.1f}" for part in parts], name
    (command,) = re.findall(r"main\.py --distributed.*?&'", PAGE, flags=re.DOTALL)
    keys = re.findall(r"--config\.([\w.]+)=(\S+)", command)
    argument = ",".join(f"{key}={value}" for key, value in keys if "/" not in value)
    assert [row[1] for row in TABLE if row[0] == f"stage1_tokens:{argument}"] == ["v5e:16x16"]


@pytest.mark.nightly(group="pods")
@needs_libtpu
def test_a_row_is_what_the_tool_says_today():
    """All of it, of a step of SOAP at full size for 256 chips, with the compiler of the page."""
    (row,) = [row for row in TABLE if row[:2] == ["finetune_in1k:mesh.fsdp=16", "v5e:16x16"]]
    config = str(ROOT / "configs" / "finetune_in1k.py:mesh.fsdp=16")
    done = compiled("--config", config, "--topology", row[1])
    assert done.returncode == 0, done.stderr
    versions = re.search(r"jax [\d.]+, libtpu [\d.]+\d", done.stdout)
    assert versions is not None
    if versions[0] not in " ".join(PAGE.split()):
        pytest.skip(f"the page is not of {versions[0]}: make it anew")
    (said,) = re.findall(r"^\| \S+ \| (v5e:16x16 .*) \|$", done.stdout, re.MULTILINE)
    assert said.replace(" of 15.75", "") == " | ".join(row[1:])
