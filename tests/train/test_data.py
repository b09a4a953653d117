"""Runs on images from a disk: bad ones are gone past and counted, up to a limit."""

import re

import pytest

from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.tasks.make import make_task
from adaperceiver_jax.train.feed import Feed
from adaperceiver_jax.train.loop import TooManyBadImagesError
from tests.data import sets
from tests.train.small import PLAIN, rows, run, run_config


def photos(split):
    return sets.photos(split, each=8)


@pytest.fixture
def folder(tmp_path):
    """24 training images and 12 for validation: an epoch is 3 steps."""
    sets.as_folder(tmp_path / "photos", photos)
    return tmp_path / "photos"


def changes(folder, **more):
    return {
        **PLAIN,
        "data.source": f"folder:{folder}",
        "data.train_count": 0,
        "data.validation_count": 0,
        "model.num_classes": 3,
        "augment.crop": (0.3, 1.0),
        "augment.rand_augment": 2,
        "log_every": 1,
        **more,
    }


CONSTANT = {
    "schedule.name": "constant",
    "schedule.warmup": "0 steps",
    "evaluation.every": "2 steps",
}
"""Runs of any length make the same steps."""


def damage(folder, *names):
    for name in names:
        path = next(folder.glob(f"train/*/{name}.jpg"))
        path.write_bytes(path.read_bytes()[:500])


@pytest.mark.slow
def test_a_run_goes_past_bad_images_and_counts_an_epochs_also_where_it_goes_on(
    tmp_path, folder, caplog
):
    """It goes on in the middle of the second epoch, and is loaded by threads or by processes."""
    damage(folder, "cat_3", "dog_5")
    workers = {"data.workers": 2}
    for name, length, more in (("whole", 6, {}), ("part", 4, {}), ("part", 6, workers)):
        length = f"{length} steps"
        run(tmp_path / name, changes=changes(folder, length=length, **{**CONSTANT, **more}))
    whole, part = (rows(tmp_path / name) for name in ("whole", "part"))
    assert whole == part
    counts = [row["bad_images"] for row in whole]
    # Twice an epoch at least: a bad image's substitute may be the other one.
    assert counts[2] >= 2
    assert counts[5] >= 2
    assert counts == sorted(counts[:3]) + sorted(counts[3:])
    assert counts[3] < counts[2]
    assert "cat_3.jpg: cannot be decoded: is cut short" in caplog.text
    assert "another image takes its place" in caplog.text


@pytest.mark.slow
def test_more_bad_images_than_may_be_end_a_run(tmp_path, folder):
    damage(folder, "cat_3", "dog_5", "dog_6")
    allowed = r"step (\d): (\d+) images .*more than config.data.bad_images=2; .*allow"
    with pytest.raises(TooManyBadImagesError, match=allowed) as caught:
        run(tmp_path / "run", changes=changes(folder, **{"data.bad_images": 2}))
    step, count = map(int, re.match(allowed, str(caught.value)).groups())
    with pytest.raises(TooManyBadImagesError, match=f"step {step}: {count} images"):
        run(tmp_path / "one", changes=changes(folder, **{"data.bad_images": count - 1}))
    with pytest.raises(BadImageError, match=r"(cat_3|dog_5|dog_6).jpg: cannot be decoded"):
        run(tmp_path / "other", changes=changes(folder, **{"data.bad_images": 0}))


def test_evaluation_drops_no_image(folder):
    (folder / "val" / "cat" / "cat_1.jpg").write_bytes(b"no image")
    config = run_config(changes=changes(folder))
    with pytest.raises(BadImageError, match=r"val/cat/cat_1.jpg: cannot be decoded: is no image"):
        list(Feed(config, make_task(config)).evaluation())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"model.num_classes": 4}, "num_classes=4 of the model: .* has 3 classes"),
        ({"augment.crop": (0.5,)}, "config.augment.crop"),
        ({"data.image_width": 40}, "config.data.image_width=40: evaluation cuts a square"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(tmp_path, folder, more, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", changes=changes(folder, **more))
    assert not (tmp_path / "run").exists()


def test_data_without_what_the_task_learns_from(tmp_path):
    (tmp_path / "x" / "images").mkdir(parents=True)
    (tmp_path / "x" / "annotations").mkdir()
    for i in range(4):
        (tmp_path / "x" / "images" / f"{i}.jpg").write_bytes(sets.jpeg(i))
        labels = sets.png(sets.maps(i, 40, 50)[0])
        (tmp_path / "x" / "annotations" / f"{i}.png").write_bytes(labels)
    with pytest.raises(ValueError, match="has no label, which the task learns from; it has"):
        run(tmp_path / "run", changes=changes(tmp_path / "x", **{"data.validation": "50%"}))


def test_labels_of_tar_shards_beyond_the_models_classes(tmp_path):
    source, validation = sets.as_tars(tmp_path / "tars", photos)
    wrong = {"data.source": source, "data.validation": validation, "model.num_classes": 2}
    with pytest.raises(ValueError, match=r"num_classes=2 of the model: .* has the label 2; set"):
        run(tmp_path / "run", changes=changes(tmp_path, **wrong))
