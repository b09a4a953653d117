"""Writing ArrayRecord: complete, resumable, nothing bad in it."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordReader

from adaperceiver_jax.data import prepare as module
from adaperceiver_jax.data.prepare import KNOWN, Known, check_known, prepare
from adaperceiver_jax.data.sources import open_source
from tests.data import sets


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def records(folder):
    """Every record of every file, in order."""
    out = []
    for path in sorted(folder.glob("*.array_record")):
        reader = ArrayRecordReader(str(path))
        out += reader.read_all()
        reader.close()
    return out


@pytest.fixture
def opened(tmp_path):
    return open_source(sets.as_folder(tmp_path / "photos"))


@pytest.mark.parametrize("workers", [1, 2])
def test_it_is_written_once_by_one_process_or_more(tmp_path, opened, workers):
    done = prepare(opened, tmp_path / "out", per_shard=5, workers=workers)
    assert (done.counts, done.bad) == ({"train": 12, "validation": 6}, ())
    names = [f"train-{i:05d}-of-00003.array_record" for i in range(3)]
    names += [f"validation-{i:05d}-of-00002.array_record" for i in range(2)]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["dataset.json", *names]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["num_classes"] == 3
    assert about["classes"] == list(sets.CLASSES)
    with pytest.raises(ValueError, match="out: is prepared already"):
        prepare(opened, tmp_path / "out")


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_it_goes_on_where_it_was_stopped_and_ends_the_same(tmp_path, opened, monkeypatch, stop):
    whole, part = tmp_path / "whole", tmp_path / "part"
    prepare(opened, whole, per_shard=4)
    written = []
    write = module.write_shard

    def stopping(shard, *arguments):
        if len(written) == stop:
            (shard.path.parent / f".{shard.path.name}.7.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        written.append(shard.path.name)
        write(shard, *arguments)

    monkeypatch.setattr(module, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(opened, part, per_shard=4)
    monkeypatch.setattr(
        module, "write_shard", lambda *x: written.append(x[0].path.name) or write(*x)
    )
    prepare(opened, part, per_shard=4)
    assert len(written) == len(set(written)) == 5
    assert list(contents(whole)) == list(contents(part))
    assert records(whole) == records(part)


def test_another_data_set_in_the_same_folder_is_refused(tmp_path, opened, monkeypatch):
    monkeypatch.setattr(module, "write_shard", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare(opened, tmp_path / "out", per_shard=4)
    with pytest.raises(ValueError, match="was begun with per_shard=4, this is 5"):
        prepare(opened, tmp_path / "out", per_shard=5)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("x")
    with pytest.raises(ValueError, match="full: is not empty; name a new folder"):
        prepare(opened, tmp_path / "full")


def test_images_that_do_not_decode_are_left_out_and_named(tmp_path):
    source = sets.as_folder(tmp_path / "photos")
    damaged = tmp_path / "photos" / "train" / "cat" / "cat_2.jpg"
    damaged.write_bytes(damaged.read_bytes()[:400])
    (tmp_path / "photos" / "val" / "dog" / "dog_0.jpg").write_bytes(b"")
    done = prepare(open_source(source), tmp_path / "out", per_shard=5)
    assert done.counts == {"train": 11, "validation": 5}
    assert len(done.bad) == 2
    assert "train/cat/cat_2.jpg: cannot be decoded" in done.bad[0]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["left_out"] == list(done.bad)
    again = open_source(f"array_record:{tmp_path / 'out'}")
    assert (len(again.train.source), len(again.validation.source)) == (11, 5)
    labels = [int(again.train.source[i]["label"]) for i in range(11)]
    assert np.bincount(labels).tolist() == [4, 3, 4]


def test_what_cannot_be_read_is_left_out_too(tmp_path):
    source = sets.as_folder(tmp_path / "photos")
    (tmp_path / "photos" / "train" / "cat" / "gone.jpg").symlink_to("nowhere.jpg")
    first = prepare(open_source(source), tmp_path / "first", per_shard=5)
    assert first.counts == {"train": 12, "validation": 6}
    assert "cat/gone.jpg" in first.bad[0]
    path = tmp_path / "first" / "train-00000-of-00003.array_record"
    data = bytearray(path.read_bytes())
    data[3000] ^= 0x5A  # in a record
    path.write_bytes(data)
    again = prepare(open_source(f"array_record:{tmp_path}/first"), tmp_path / "second")
    assert again.counts == {"train": 11, "validation": 6}
    assert "train-00000-of-00003.array_record, record " in again.bad[0]


def test_a_file_that_was_changed_meanwhile_is_written_anew(tmp_path, opened, monkeypatch):
    write, written = module.write_shard, []

    def stopping(shard, *arguments):
        write(shard, *arguments)
        written.append(shard.path)
        if len(written) == 4:
            shutil.copy(written[-1], written[0])  # 3 validation images in place of 4
            raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_shard", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepare(opened, tmp_path / "out", per_shard=5)
    done = prepare(opened, tmp_path / "out", per_shard=5)
    assert written.count(written[0]) == 2
    assert len(records(tmp_path / "out")) == sum(done.counts.values()) == 18


def test_two_at_once_in_one_folder_are_refused(tmp_path, opened, monkeypatch):
    def second(shard, *_):
        with pytest.raises(ValueError, match="out: is being written by another process"):
            prepare(opened, tmp_path / "out")
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_shard", second)
    with pytest.raises(KeyboardInterrupt):
        prepare(opened, tmp_path / "out")


def test_labels_of_tars_do_not_bound_the_classes(tmp_path):
    train, validation = sets.as_tars(tmp_path / "tars")
    prepare(open_source(train, "", validation), tmp_path / "out")
    split = open_source(f"array_record:{tmp_path}/out").train
    assert (split.num_classes, split.smallest_num_classes) == (None, 3)


def test_a_file_that_was_lost_is_missed(tmp_path, opened):
    prepare(opened, tmp_path / "out", per_shard=5)
    (tmp_path / "out" / "train-00001-of-00003.array_record").unlink()
    with pytest.raises(ValueError, match=r"has 2 files of train, not 3 as dataset.json says"):
        open_source(f"array_record:{tmp_path / 'out'}")


def test_counts_are_those_of_the_published_data_set(opened, monkeypatch):
    assert KNOWN["imagenet12k"] == Known(12_129_687, 472_840, 11_821)
    with pytest.raises(
        ValueError, match="imagenet12k has 12,129,687 train images, but 12 are here"
    ):
        check_known(opened, "imagenet12k")
    monkeypatch.setitem(KNOWN, "small", Known(12, 6, 3))
    check_known(opened, "small")
    monkeypatch.setitem(KNOWN, "small", Known(12, 7, 3))
    with pytest.raises(ValueError, match="small has 7 validation images, but 6 are here"):
        check_known(opened, "small")
    monkeypatch.setitem(KNOWN, "small", Known(12, 6, 4))
    with pytest.raises(ValueError, match="small has 4 classes, but 3 are here"):
        check_known(opened, "small")


def test_a_label_beyond_the_classes_ends_it(tmp_path, opened):
    wrong = dataclasses.replace(opened.train, num_classes=2)
    with pytest.raises(ValueError, match=r"dog_0.jpg: its label is 2; must be in 0\.\.1"):
        prepare(dataclasses.replace(opened, train=wrong), tmp_path / "out")


def test_the_tfds_builder_of_imagenet12k(tmp_path):
    from adaperceiver_jax.data.imagenet12k.imagenet12k_dataset_builder import Builder

    tars = tmp_path / "tars"
    sets.as_tars(tars)
    for path in list(tars.iterdir()):
        split, number = path.stem.split("-")
        path.rename(tars / f"imagenet12k-{split}-{int(number):04d}.tar")
    import tensorflow_datasets as tfds

    builder = Builder(data_dir=str(tmp_path / "data"), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(tars))
    builder.download_and_prepare(download_config=config)
    opened = open_source("tfds:imagenet12k", str(tmp_path / "data"))
    assert opened.train.num_classes == 11_821
    for split in sets.SPLITS:
        source = getattr(opened, split).source
        ours = {(source[i]["image"], int(source[i]["label"])) for i in range(len(source))}
        assert ours == {(photo.data, photo.label) for photo in sets.photos(split)}
