"""Data sets that are not what they should be: named, and told what to do."""

import json
import shutil
import tarfile

import fsspec
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.pipeline import TrainOrder
from adaperceiver_jax.data.sources import open_source, open_split
from tests.data import sets
from tools.prepare_data import example, prepare


def refused(message, *arguments, **more):
    with pytest.raises(ValueError, match=message) as caught:
        open_source(*arguments, **more)
    return str(caught.value)


def test_no_such_kind():
    for name in ("imagenet1k", "folder:", "zip:x", ""):
        refused(rf"config.data.source='{name}': must be 'scenes', or one of 'tfds:...'", name)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(train_count=0, validation_count=8), "config.data.train_count=0: say how many"),
        (dict(train_count=8, validation_count=0), "config.data.validation_count=0: say how many"),
        (dict(folder="x"), "config.data.dir='x': there is no such folder"),
        (dict(folder="."), "config.data.dir='.': scenes are rendered, not read; leave it out"),
        (dict(validation="10%"), "config.data.validation='10%': scenes are rendered"),
    ],
)
def test_scenes(arguments, message):
    refused(message, "scenes", **arguments)


# Folders.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "there is no such folder"),
        (lambda x: (shutil.rmtree(x), x.mkdir()), "holds no folders; make one a class, with"),
        (lambda x: (x / "train/no").mkdir(), r"train/no: holds no images \(.jpg, .*take"),
        (lambda x: shutil.rmtree(x / "val"), r"for validation.*config.data.validation='10%'"),
        (lambda x: shutil.rmtree(x / "train"), "val: is there, but no folder of training images"),
        (lambda x: (x / "train/cat/up").symlink_to(x / "train"), "cat/up: is a link to a folder"),
        (lambda x: shutil.copytree(x / "val/cat", x / "val/cow"), "has the class 'cow', whi"),
    ],
)
def test_folders_of_classes(tmp_path, change, message):
    source = sets.as_folder(tmp_path / "photos")
    change(tmp_path / "photos")
    refused(message, source)


def test_other_classes_in_another_folder(tmp_path):
    source = sets.as_folder(tmp_path / "a")
    other = sets.as_folder(tmp_path / "b")
    for split in ("train", "val"):
        (tmp_path / "b" / split / "dog").rename(tmp_path / "b" / split / "hound")
    refused("its classes must be those of folder:.*'dog' is in one of them only", source, "", other)


def test_an_image_without_its_annotation(tmp_path):
    images, maps = (tmp_path / name / "training" for name in ("images", "annotations"))
    images.mkdir(parents=True)
    maps.mkdir(parents=True)
    for i in range(3):
        (images / f"{i}.jpg").write_bytes(sets.jpeg(i))
    (maps / "1.png").write_bytes(sets.png(sets.maps(0, 40, 50)[0]))
    refused(
        r"images/training/0.jpg: has no segmentation .*annotations/training/0.png; 2 of 3 images",
        f"folder:{tmp_path}",
    )


# Tar shards.


def test_shards_that_are_not_there_or_cut_short(tmp_path):
    refused(r"x-1.tar: there is no such file", f"wds:{tmp_path}/x-{{1..3}}.tar")
    source = sets.as_tars(tmp_path)[0]
    refused(r"train-2.tar: there is no such file", f"wds:{tmp_path}/train-{{0..2}}.tar")
    refused("there is no such file", f"wds:{tmp_path}/none-*.tar")
    shard = tmp_path / "train-1.tar"
    data = shard.read_bytes()
    with tarfile.open(shard) as tar:
        between_files = tar.getmembers()[6].offset
    for left in (100, 2000, between_files):
        shard.write_bytes(data[:left])
        refused(r"train-1.tar: is no whole tar file; was its copy cut short\?", source, "", "10%")
        assert not list(tmp_path.glob(".adaperceiver*"))


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        (["0.jpg 0.cls 1.jpg 1.cls 2.jpg"], "0.tar: 2 has no label; others have one"),
        (["0.jpg 0.cls 1.jpg 1.cls 2.cls"], "0.tar: 2 has no image; others have one"),
        (["0.txt"], "its shards hold no images"),
        (["0.jpg 0.cls", "0.jpg"], "0.tar has image, label, but .*1.tar has image; all shards"),
        (["0.jpg 0.cls 0.jpg 0.cls"], "0.tar, 0.jpg: is a second image of 0; give each"),
        (["0.jpg 0.cls 0.cls"], "0.tar, 0.cls: is a second label of 0"),
        *(
            ([f"0.jpg 0.cls={text}"], "0.tar, 0.cls: holds '.*', not the number of a class")
            for text in ("cat", "-1", "99999999999", "\xff\xd8")
        ),
    ],
)
def test_shards_with_too_little_or_too_much(tmp_path, shards, message):
    for number, files in enumerate(shards):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as tar:
            for file in files.split():
                name, _, text = file.partition("=")
                label = (text or "1").encode("latin-1")
                sets.add(tar, name, label if name.endswith("cls") else sets.jpeg(0))
    refused(message, f"wds:{tmp_path}/*.tar")


# ArrayRecord.


def test_a_record_file_cut_short(tmp_path):
    source = sets.as_array_records(tmp_path)
    path = tmp_path / "train-1.array_record"
    data = path.read_bytes()
    for part in (0.9999, 0.5, 0.0005):
        path.write_bytes(data[: int(part * len(data))])
        refused("train-1.array_record: is no whole ArrayRecord file; was its", source, "", "10%")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"some text, no record", "is no tf.train.Example: "),
        (example({"image": b"x" * 99})[:50], "is no tf.train.Example: "),
        (example({}), "is no tf.train.Example: it has no features"),
        (example({"text": b"x", "label": 3}), "has no 'image' but label, text"),
    ],
)
def test_records_that_are_something_else(tmp_path, record, message):
    writer = ArrayRecordWriter(str(tmp_path / "a.array_record"), "group_size:1")
    writer.write(record)
    writer.close()
    refused(f"a.array_record, record 0: {message}", f"array_record:{tmp_path}/a*")


def test_a_folder_that_was_not_prepared_and_a_bucket(tmp_path):
    refused("x: there is no such file, and no such folder; tools/prep", "array_record:x")
    refused("dataset.json: is not there. Name the files", f"array_record:{tmp_path}")
    sets.as_array_records(tmp_path)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path / "train-0.array_record"), "/ar/train-0.array_record")
    refused("read from disks only; mount the bucket", "array_record:memory://ar/train-*")
    memory.rm("/ar", recursive=True)
    for text in ('{"splits": ', "{}", "[]", '{"splits": {"train": 3}}'):
        (tmp_path / "dataset.json").write_text(text)
        refused(f"{tmp_path}/dataset.json: is damaged. Name the files", f"array_record:{tmp_path}")


def test_a_prepared_folder_with_another_file_in_it(tmp_path):
    photos = open_source(sets.as_folder(tmp_path / "photos"))
    prepare(photos, tmp_path / "made", per_shard=5)
    files = sorted((tmp_path / "made").glob("train-*"))
    assert len(files) == 3
    source = f"array_record:{tmp_path}/made"
    shutil.copy(next((tmp_path / "made").glob("validation-*")), files[1])
    refused("made: holds 11 images of train, not 12 as dataset.json says", source)
    files[1].unlink()
    refused("made: has 2 files of train, not 3 as dataset.json says", source)


# TFDS.


def test_tfds_that_is_not_there(tmp_path):
    said = refused("imagenet2012: is known, but not prepared", "tfds:imagenet2012", str(tmp_path))
    assert f"tfds build imagenet2012 --file_format=array_record --data_dir={tmp_path}" in said
    refused("tfds:no_such_set: is not in", "tfds:no_such_set", str(tmp_path))


def test_sets_without_validation_images_say_so_and_may_hold_some_out(tmp_path):
    import tensorflow_datasets as tfds

    features = {"label": tfds.features.ClassLabel(num_classes=3), "image": tfds.features.Text()}
    examples = {"train": [{"label": 1, "image": "x"}] * 4}
    sets.write_tfds(tmp_path, "train_alone", lambda: features, examples)
    made = tmp_path / "made"
    prepare(open_source(sets.as_folder(tmp_path / "photos")), made)
    about = json.loads((made / "dataset.json").read_text())
    del about["splits"]["validation"]
    (made / "dataset.json").write_text(json.dumps(about))
    for name in ("tfds:train_alone", f"array_record:{made}", f"array_record:{made}/train-*"):
        refused("says of no images that they are for validation", name, str(tmp_path))
        held = open_source(name, str(tmp_path), "25%")
        assert len(held.train.source) == 3 * len(held.validation.source)


def test_a_tfds_file_cut_short_or_gone_or_another_or_of_another_format(tmp_path):
    source = sets.as_tfds(tmp_path, name="photos_cut")
    (path,) = tmp_path.rglob("*train*array_record*")
    (other,) = tmp_path.rglob("*validation*array_record*")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(f"{path.name}: is no whole ArrayRecord file; was its copy", source, str(tmp_path))
    shutil.copy(other, path)
    refused(f"{path.name}: holds 6 records, not 12 as TFDS says", source, str(tmp_path))
    path.unlink()
    refused(f"{path.name}: there is no such file", source, str(tmp_path))
    (about,) = tmp_path.rglob("dataset_info.json")
    about.write_text(about.read_text().replace('"array_record"', '"tfrecord"'))
    refused("as tfrecord, which needs TensorFlow.*tfds build photos_cut", source, str(tmp_path))


def test_a_damaged_record_is_one_bad_image(tmp_path, caplog):
    sets.as_array_records(tmp_path / "a")
    tfds = sets.as_tfds(tmp_path / "b", name="photos_damaged")
    for kind, name in (("a", f"array_record:{tmp_path}/a/train-0*"), ("b", tfds)):
        path = min((tmp_path / kind).rglob("*train*array_record*"))
        data = bytearray(path.read_bytes())
        data[3000] ^= 0x5A  # in a record: what comes after all of them is padding
        path.write_bytes(data)
        source = open_split(name, str(tmp_path / kind), "train").source
        errors = {}
        for i in range(len(source)):
            try:
                source[i]
            except BadImageError as error:
                errors[i] = str(error)
        ((bad, message),) = errors.items()
        assert f"{path}, record {bad}" in message
        order = TrainOrder(source, 0, tolerant=True)
        assert sum(int(order[n]["bad"]) for n in range(len(source))) >= 1
        assert f"{path}, record {bad}" in caplog.text
