"""tools/prepare_data.py as a person runs it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaperceiver_jax.data.sources import open_source
from tests.data import sets

ROOT = Path(__file__).resolve().parents[2]


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "tools/prepare_data.py", *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(*arguments):
    process = start(*arguments)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_tars_become_records_and_the_next_command_is_said(tmp_path):
    train, validation = sets.as_tars(tmp_path / "tars")
    shard = next((tmp_path / "tars").glob("train-0.tar"))
    damaged = sets.photos("train")[2].data
    whole = shard.read_bytes()
    shard.write_bytes(whole.replace(damaged[:600], damaged[:300] + b"\0" * 300))
    out_folder = tmp_path / "out"
    code, out, err = run(train, out_folder, "--validation", validation, "--per-shard", 4)
    assert code == 0, err
    assert "12 train, 6 validation images" in out or "11 train, 6 validation images" in out
    assert f"--config.data.source=array_record:{out_folder}" in out
    opened = open_source(f"array_record:{out_folder}")
    assert len(opened.validation.source) == 6
    code, out, err = run(train, out_folder, "--validation", validation)
    assert code == 1
    assert err.strip().startswith("ValueError: ")
    assert "is prepared already" in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes", "out"], "there is nothing to prepare"),
        (["zip:x", "out"], "must be 'scenes', or one of 'tfds:...'"),
        (["folder:no/where", "out"], "no/where: there is no such folder"),
        (["folder:x", "out", "--per-shard", "0"], "--per-shard=0: must be at least 1"),
        (["folder:x", "out", "--workers", "-1"], "--workers=-1: must be at least 0"),
    ],
)
def test_mistakes_are_one_line(tmp_path, arguments, message):
    arguments[1] = tmp_path / "out"
    code, _, err = run(*arguments)
    assert code == 1
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_another_number_of_images_than_was_published_is_refused_before_any_work(tmp_path):
    source = sets.as_folder(tmp_path / "photos")
    code, _, err = run(source, tmp_path / "out", "--expect", "imagenet1k")
    assert code == 1
    assert "imagenet1k has 1,281,167 train images, but 12 are here" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_so_it_does(tmp_path):
    def many(split):
        return sets.photos(split, each=400)

    source = sets.as_folder(tmp_path / "photos", many)
    arguments = (source, tmp_path / "out", "--per-shard", 20, "--workers", 2)
    process = start(*arguments)
    while len(list((tmp_path / "out").glob("train*"))) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "stopped; the same command goes on from here"
    there = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("train*")}
    assert 3 <= len(there) < 60
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "1,200 train, 600 validation images" in out
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "out").glob("train*")}
    assert len(kept) == 60
    assert there.items() <= kept.items()
