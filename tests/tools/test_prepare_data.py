"""tools/prepare_data.py: complete, resumable, nothing bad in it; and as a person runs it."""

import dataclasses
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from adaperceiver_jax.data.sources import open_source
from tests.data import sets
from tools import prepare_data
from tools.prepare_data import PUBLISHED, check_published, prepare

ROOT = Path(__file__).resolve().parents[2]


def records(folder):
    """Every record of every file, in order."""
    out = []
    for path in sorted(folder.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        out += reader.read_all()
        reader.close()
    return out


def images(about):
    return [part["images"] for part in about["splits"].values()]


@pytest.fixture
def opened(tmp_path):
    return open_source(sets.as_folder(tmp_path / "photos"))


@pytest.fixture
def stops_after(monkeypatch):
    """Has the writing of files stop as by Ctrl-C, one half done, when so many are written; lists
    those that are."""
    write = prepare_data.write_shard

    def stop(count):
        written = []

        def writing(shard):
            if len(written) == count:
                shard.path.with_name(f".{shard.path.name}.half").write_bytes(b"half")
                raise KeyboardInterrupt
            written.append(shard.path)
            return write(shard)

        monkeypatch.setattr(prepare_data, "write_shard", writing)
        return written

    return stop


def test_the_records_are_the_files_and_what_is_known_of_them(tmp_path, opened):
    about = prepare(opened, tmp_path / "out", per_shard=5)
    assert (images(about), about["left_out"]) == ([12, 6], [])
    assert (about["num_classes"], about["classes"]) == (3, list(sets.CLASSES))
    assert len([*(tmp_path / "out").glob("*.array_record")]) == 3 + 2
    assert json.loads((tmp_path / "out" / "dataset.json").read_text()) == about
    photo = sets.photos("train")[0]
    features = {"image": photo.data, "name": b"bird/bird_0.jpg", "label": 0}
    assert records(tmp_path / "out")[0] == prepare_data.example(features)
    with pytest.raises(ValueError, match="out: is prepared already"):
        prepare(opened, tmp_path / "out")


def test_it_goes_on_where_it_was_stopped_and_ends_the_same(tmp_path, opened, stops_after):
    """It writes again only what was changed since."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    prepare(opened, whole, per_shard=4)
    written = stops_after(4)
    with pytest.raises(KeyboardInterrupt):
        prepare(opened, part, per_shard=4)
    with pytest.raises(ValueError, match="was begun with per_shard=4, this is 5"):
        prepare(opened, part, per_shard=5)
    shutil.copy(written[3], written[0])  # 3 validation images in place of 4
    again = stops_after(None)
    prepare(opened, part, per_shard=4)
    assert again == [written[0], part / "validation-00001-of-00002.array_record"]
    assert {path.name for path in whole.iterdir()} == {path.name for path in part.iterdir()}
    assert records(whole) == records(part)


def test_a_folder_with_something_else_or_somebody_else_is_refused(tmp_path, opened):
    with (
        prepare_data._alone(tmp_path),
        pytest.raises(ValueError, match="is being written by another process"),
    ):
        prepare(opened, tmp_path)
    (tmp_path / "x").write_text("x")
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        prepare(opened, tmp_path)


def test_what_cannot_be_decoded_or_read_is_left_out_and_named(tmp_path):
    source = sets.as_folder(tmp_path / "photos")
    damaged = tmp_path / "photos" / "train" / "cat" / "cat_2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:400])
    (tmp_path / "photos" / "train" / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "photos" / "val" / "dog" / "dog_0.jpg").write_bytes(b"")
    first = prepare(open_source(source), tmp_path / "first", per_shard=5)
    assert images(first) == [11, 5]
    cut, gone, _ = first["left_out"]
    assert "train/cat/cat_2.jpg: cannot be decoded" in cut
    assert "cat/gone.jpg" in gone
    again = open_source(f"array_record:{tmp_path / 'first'}")
    labels = [int(sample["label"]) for sample in map(again.train.source.__getitem__, range(11))]
    assert np.bincount(labels).tolist() == [4, 3, 4]
    path = tmp_path / "first" / "train-00000-of-00003.array_record"
    data = bytearray(path.read_bytes())
    data[3000] ^= 0x5A  # in a record
    path.write_bytes(data)
    second = prepare(open_source(f"array_record:{tmp_path}/first"), tmp_path / "second")
    assert images(second) == [10, 5]
    assert "train-00000-of-00003.array_record, record " in second["left_out"][0]


def test_a_label_beyond_the_classes_ends_it(tmp_path, opened):
    wrong = dataclasses.replace(opened.train, num_classes=2)
    with pytest.raises(ValueError, match=r"dog_0.jpg: its label is 2; must be in 0\.\.1"):
        prepare(dataclasses.replace(opened, train=wrong), tmp_path / "out")


def test_classes_are_as_many_as_in_the_published_data_set(opened, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "small", (12, 6, 3))
    check_published(opened, "small")
    monkeypatch.setitem(PUBLISHED, "small", (12, 6, 4))
    with pytest.raises(ValueError, match="small has 4 classes, but 3 are here"):
        check_published(opened, "small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["scenes"], "there is nothing to prepare"),
        (["folder:no/where"], "no/where: there is no such folder"),
        (["folder:x", "--per-shard", "0"], "--per-shard=0: must be at least 1"),
        (["folder:x", "--workers", "-1"], "--workers=-1: must be at least 0"),
        (["PHOTOS", "--expect", "imagenet1k"], "has 1,281,167 train images, but 12 are here"),
    ],
)
def test_mistakes_are_one_line_and_come_before_any_work(tmp_path, refused, arguments, message):
    source = arguments[0].replace("PHOTOS", sets.as_folder(tmp_path / "photos"))
    said = refused(prepare_data, source, tmp_path / "out", *arguments[1:])
    assert message in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_the_tfds_builder_of_imagenet12k(tmp_path):
    import tensorflow_datasets as tfds

    from tools.imagenet12k.imagenet12k_dataset_builder import Builder

    tars = tmp_path / "tars"
    sets.as_tars(tars)
    for path in list(tars.iterdir()):
        split, number = path.stem.split("-")
        path.rename(tars / f"imagenet12k-{split}-{int(number):04d}.tar")
    builder = Builder(data_dir=str(tmp_path / "data"), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(tars))
    builder.download_and_prepare(download_config=config)
    opened = open_source("tfds:imagenet12k", str(tmp_path / "data"))
    assert opened.train.num_classes == 11_821
    for split in sets.SPLITS:
        source = getattr(opened, split).source
        ours = {(source[i]["image"], int(source[i]["label"])) for i in range(len(source))}
        assert ours == {(photo.data, photo.label) for photo in sets.photos(split)}


def start(*arguments):
    """The command as a person runs it, by several processes."""
    return subprocess.Popen(
        [sys.executable, "tools/prepare_data.py", *map(str, arguments), "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_tars_become_records_and_the_next_command_is_said(tmp_path):
    train, validation = sets.as_tars(tmp_path / "tars")
    shard, damaged = tmp_path / "tars" / "train-0.tar", sets.photos("train")[2].data
    shard.write_bytes(shard.read_bytes().replace(damaged, bytes(len(damaged))))
    folder = tmp_path / "out"
    process = start(train, folder, "--validation", validation, "--per-shard", 4)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert "1 images do not decode and were left out:\n  " in out
    assert f"{folder}: 11 train, 6 validation images. Train on them with\n" in out
    assert out.endswith(f"  --config.data.source=array_record:{folder}\n")
    found = open_source(f"array_record:{folder}")
    assert len(found.validation.source) == 6
    # Labels of tars do not bound the classes.
    assert (found.train.num_classes, found.train.smallest_num_classes) == (None, 3)
    prepare(open_source(train, "", validation), tmp_path / "alone", per_shard=4)
    assert records(folder) == records(tmp_path / "alone")


@pytest.mark.nightly(group="tools")
def test_ctrl_c_says_how_to_go_on_and_so_it_does(tmp_path):
    source = sets.as_folder(tmp_path / "photos", functools.partial(sets.photos, each=400))
    arguments = (source, tmp_path / "out", "--per-shard", 20)

    def times():
        return {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("train*")}

    process = start(*arguments)
    while len(times()) < 3:
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "stopped; the same command goes on from here"
    there = times()
    assert 3 <= len(there) < 60
    out, err = (process := start(*arguments)).communicate(timeout=300)
    assert process.returncode == 0, err
    assert "1,200 train, 600 validation images" in out
    assert len(times()) == 60
    assert there.items() <= times().items()
