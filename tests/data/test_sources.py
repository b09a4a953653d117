"""The same photographs in every format: the same images, labels and order."""

import io
import os
import pickle
import shutil
import sys
import tarfile

import fsspec
import numpy as np
import pytest

from adaperceiver_jax.data import webdataset
from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.pipeline import TrainOrder, train_batches
from adaperceiver_jax.data.sources import open_source, open_split
from tests.data import sets
from tools.prepare_data import prepare

FORMATS = ("folder", "wds", "array_record", "prepared", "tfds", "remote")


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Each format's two splits."""
    root = tmp_path_factory.mktemp("sets")
    made = {"folder": open_source(sets.as_folder(root / "folder"))}
    tars = sets.as_tars(root / "tars")
    made["wds"] = open_source(tars[0], "", tars[1])
    records = sets.as_array_records(root / "records")
    made["array_record"] = open_source(records, "", records.replace("train", "validation"))
    prepare(made["folder"], root / "prepared", per_shard=5)
    made["prepared"] = open_source(f"array_record:{root / 'prepared'}")
    made["tfds"] = open_source(sets.as_tfds(root / "tfds"), str(root / "tfds"))
    memory = fsspec.filesystem("memory")
    memory.put(str(root / "tars"), "/bucket/tars", recursive=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        remote = [f"wds:memory://bucket/tars/{split}-*.tar" for split in sets.SPLITS]
        made["remote"] = open_source(remote[0], "", remote[1])
    yield made
    memory.rm("/bucket", recursive=True)


def batches(source):
    """The bytes of some batches for training."""
    prepare = Preparation(size=(16, 16), augment=AugmentSettings(rand_augment=2)).train
    made = train_batches(TrainOrder(source, 7, prepare), 5, 0, 6)
    return [{name: x.tobytes() for name, x in batch.items()} for batch in made]


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_images_labels_order_and_batches(opened, kind):
    for name in sets.SPLITS:
        split = getattr(opened[kind], name)
        assert split.fields == ("image", "label")
        for sample, photo in zip(split.source, sets.photos(name), strict=True):
            assert (sample["image"], sample["label"]) == (photo.data, photo.label)
            assert photo.name in sample["name"]
        assert split.num_classes == (3 if kind in ("folder", "prepared", "tfds") else None)
    assert batches(opened[kind].train.source) == batches(opened["folder"].train.source)
    assert opened["wds"].train.smallest_num_classes == 3
    assert opened["prepared"].train.classes == opened["folder"].train.classes == sets.CLASSES


def test_sources_travel_and_are_known_again_by_name_and_nothing_brings_tensorflow(opened):
    for kind in FORMATS[:-1]:  # a file system in memory does not travel to other processes
        source = opened[kind].train.source
        copy = pickle.loads(pickle.dumps(source))
        assert copy[3] == source[3]
        assert repr(copy) == repr(source)
        assert len(pickle.dumps(source)) < 6000
    assert repr(opened["tfds"].train.source) == "TfdsData(small_photos, train: 12 images)"
    assert repr(opened["array_record"].train.source) == (
        "ArrayRecords(2 files from 'train-0.array_record': 12 images)"
    )
    assert "tensorflow" not in sys.modules


def test_an_index_is_written_once_and_again_when_a_shard_changes_or_it_is_damaged(
    tmp_path, monkeypatch
):
    source = sets.as_tars(tmp_path)[0]
    whole = open_split(source, "", "train").source[5]
    (index,) = tmp_path.glob(".adaperceiver-index-*.npy")
    data, scanned, scan = index.read_bytes(), [], webdataset.scan
    monkeypatch.setattr(webdataset, "scan", lambda shard: scanned.append(shard) or scan(shard))
    for damaged, scans in ((data, 0), (b"", 2), (b"no index at all", 2), (data[:-40], 2)):
        index.write_bytes(damaged)
        assert open_split(source, "", "train").source[5] == whole
        assert index.read_bytes() == data
        assert len(scanned) == scans
        scanned.clear()
    os.utime(tmp_path / "train-1.tar", ns=(1, 1))
    open_split(source, "", "train")
    assert len(scanned) == 2


def test_folders_as_people_have_them(tmp_path):
    """Split names in capitals, files of other kinds, hidden ones, names of any characters."""
    sets.as_folder(tmp_path, names=("Train", "VAL"))
    want = len(open_source(f"folder:{tmp_path}").train.source)
    birds = tmp_path / "Train" / "bird"
    for name in (".DS_Store", "notes.txt", ".bird_0.jpg"):
        (birds / name).write_bytes(b"x")
    (tmp_path / "Train" / ".cache").mkdir()
    for name in ("a b.JPG", "ü\u0308.jpeg", os.fsdecode(b"caf\xe9.jpg")):
        (birds / name).write_bytes(sets.jpeg(5))
    (birds / "more").mkdir()
    (birds / "more" / "link.jpg").symlink_to(birds / "a b.JPG")
    source = open_source(f"folder:{tmp_path}").train.source
    assert len(source) == want + 4
    assert sum(sample["image"] == sets.jpeg(5) for sample in source) == 4


def test_an_index_goes_to_the_cache_where_the_shards_folder_takes_none(tmp_path, monkeypatch):
    tars = sets.as_tars(tmp_path / "tars")
    store = webdataset._store

    def refused(index, folder, name):
        if folder == tmp_path / "tars":
            raise PermissionError("read-only")
        return store(index, folder, name)

    monkeypatch.setattr(webdataset, "_store", refused)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    opened = open_source(tars[0], "", tars[1])
    assert len(opened.train.source) == 12
    assert len(list((tmp_path / "cache" / "adaperceiver_jax").iterdir())) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(ValueError, match="set XDG_CACHE_HOME to a folder where it can"):
        open_source(tars[0], "", tars[1])


def names(split):
    return [split.source[i]["name"] for i in range(len(split.source))]


def test_a_part_can_be_held_out_the_same_for_all_and_some_drawn_to_try_a_run(tmp_path):
    source = sets.as_folder(tmp_path)
    opened = open_source(source, "", "25%")
    held, rest = names(opened.validation), names(opened.train)
    assert (len(held), len(rest)) == (3, 9)
    assert len(set(held) | set(rest)) == 12
    assert names(open_source(source, "", "25%").validation) == held
    assert names(open_source(source, "", "25%", seed=1).validation) != held
    with pytest.raises(ValueError, match=r"config.data.validation='1%': holds out 0 of 12 images"):
        open_source(source, "", "1%")
    opened = open_source(source, train_count=5, validation_count=99)
    assert len(set(names(opened.train))) == 5
    assert len(opened.validation.source) == 6
    assert names(open_source(source, train_count=5).train) == names(opened.train)
    held = open_source(source, "", "25%", train_count=5, validation_count=2)
    assert (len(held.train.source), len(held.validation.source)) == (5, 2)


def test_another_source_for_validation_gives_its_validation_images_or_all_it_has(tmp_path):
    folder = sets.as_folder(tmp_path / "folder")
    records = sets.as_array_records(tmp_path / "records")
    assert len(open_source(records, "", folder).validation.source) == 6
    flat = tmp_path / "flat"
    shutil.copytree(tmp_path / "folder" / "train", flat)
    assert len(open_source(records, "", f"folder:{flat}").validation.source) == 12
    # Paths are relative to the folder that is given.
    assert len(open_source("folder:folder", str(tmp_path)).train.source) == 12


# Pairs of images and maps.


LAYOUTS = {"images first": "{kind}/{split}", "split first": "{split}/{kind}", "no split": "{kind}"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_of_images_with_annotations_and_depth(tmp_path, layout):
    made = {}
    for split, count in (("training", 3), ("validation", 2)):
        for i in range(count):
            name = f"ADE_{split[:3]}_{i:04d}"
            made[name] = labels, depth = sets.maps(i, 40, 50)
            for kind, ending, content in (
                ("images", "jpg", sets.jpeg(i)),
                ("annotations", "png", sets.png(labels)),
                ("depth", "png", sets.png(depth)),
            ):
                folder = tmp_path / LAYOUTS[layout].format(kind=kind, split=split)
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{name}.{ending}").write_bytes(content)
    opened = open_source(f"folder:{tmp_path}", "", "40%" if layout == "no split" else "")
    inputs = ("image", "segmentation", "depth")
    assert opened.train.fields == inputs
    preparation = Preparation(size=(40, 50), inputs=inputs, zero_is_ignored=True, num_classes=150)
    for split, count in (("train", 3), ("validation", 2)):
        source = getattr(opened, split).source
        assert len(source) == count
        for i in range(count):
            out = preparation.evaluate(source[i])
            labels, depth = made.pop(source[i]["name"].rpartition("/")[2].removesuffix(".jpg"))
            shifted = np.where(labels == 0, 255, labels.astype(int) - 1)
            np.testing.assert_array_equal(out["segmentation"], shifted)
            np.testing.assert_allclose(out["depth"], depth / 1000, rtol=1e-6)
            np.testing.assert_array_equal(out["valid"], depth > 0)
            assert out["image"].shape == (40, 50, 3)
    assert not made


def test_maps_in_tars_and_in_array_records(tmp_path):
    labels, depth = sets.maps(0, 40, 50)
    metres = io.BytesIO()
    np.save(metres, (depth / 1000).astype(np.float32))
    parts = {"jpg": sets.jpeg(0), "depth.npy": metres.getvalue(), "seg.png": sets.png(labels)}
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            for ending, data in parts.items():
                sets.add(tar, f"{i:05d}.{ending}", data)
    opened = open_source(f"wds:{tmp_path}/a.tar", "", "40%")
    preparation = Preparation(size=(40, 50), inputs=("image", "segmentation", "depth"))
    prepare(opened, tmp_path / "records")
    for some in (opened, open_source(f"array_record:{tmp_path}/records")):
        assert some.train.fields == ("image", "segmentation", "depth")
        out = preparation.evaluate(some.train.source[0])
        np.testing.assert_array_equal(out["segmentation"], labels)
        np.testing.assert_allclose(out["depth"], depth / 1000, rtol=1e-6)


def test_tfds_scene_parsing_and_nyu_depth(tmp_path):
    """The features that TFDS's scene_parse150 and nyu_depth_v2 have."""
    from tensorflow_datasets import features as tf

    labels, depth = sets.maps(0, 480, 640)
    metres = (depth / 1000).astype(np.float16)
    image = tf.Image(encoding_format="jpeg")

    def written(name, part, feature, value, splits):
        def example():  # a file can be read once
            return {"image": io.BytesIO(sets.jpeg(0, 480, 640)), part: value()}

        examples = {split: [example()] for split in splits}
        sets.write_tfds(tmp_path, name, lambda: {"image": image, part: feature}, examples)
        opened = open_source(f"tfds:{name}", str(tmp_path))
        assert (len(opened.train.source), len(opened.validation.source)) == (1, 1)
        size = Preparation(size=(480, 640), inputs=opened.train.fields)
        return size.evaluate(opened.train.source[0])

    png = tf.Image(encoding_format="png")
    found = written(
        "small_scenes", "annotation", png, lambda: io.BytesIO(sets.png(labels)), ("train", "test")
    )
    np.testing.assert_array_equal(found["segmentation"], labels)
    tensor = tf.Tensor(shape=(480, 640), dtype=np.float16)
    found = written("small_rooms", "depth", tensor, lambda: metres, sets.SPLITS)
    np.testing.assert_array_equal(found["depth"], metres.astype(np.float32))
    assert found["image"].shape == (480, 640, 3)
