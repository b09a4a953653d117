"""The scenes: reproducible, the same at every size, and labelled by what they show."""

import pickle
from dataclasses import replace

import numpy as np
import pytest

from adaperceiver_jax.data.rendering import SHAPES, TEXTURES, Scene, render
from adaperceiver_jax.data.scenes import CLASSES, MAX_DISTRACTORS, Scenes


def equal(a: dict, b: dict) -> bool:
    return all(np.array_equal(a[key], b[key]) for key in a)


def clean(scene: Scene, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return render(replace(scene, noise=0.0), size, np.random.default_rng(0))


@pytest.fixture(scope="module")
def many() -> list[dict]:
    return list(Scenes(1500, size=32))


@pytest.fixture(scope="module")
def described() -> list[Scene]:
    return [Scenes(1500).scene(i) for i in range(1500)]


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_has_the_area_of_the_unit_disc_and_its_stated_reach(name):
    distance, reach = SHAPES[name]
    line = (np.arange(800) + 0.5) / 200 - 2
    u, v = np.meshgrid(line, line)
    inside = distance(u, v) < 0
    assert inside.mean() * 16 == pytest.approx(np.pi, rel=0.015)
    farthest = np.hypot(u, v)[inside].max()
    assert reach - 0.03 < farthest <= reach
    # Near the edge it is a distance: as fast as the way, but for corners.
    slope = np.hypot(*np.gradient(distance(u, v), line[1] - line[0]))
    near = slope[np.abs(distance(u, v)) < 0.1]
    np.testing.assert_allclose(np.quantile(near, [0.1, 0.5, 0.9]), 1.0, atol=0.02)


def test_the_subject_is_the_largest_and_hidden_only_by_small_things(described):
    for scene in described:
        *others, subject = scene.things
        assert subject.shape == scene.label
        assert len({thing.shape for thing in scene.things}) == len(scene.things)
        nearer = [thing for thing in others if thing.distance < subject.distance]
        assert len(nearer) <= 2
        assert all(thing.scale <= 0.68 * subject.scale for thing in others)
        assert all(thing.scale <= 0.33 * subject.scale for thing in nearer)


def test_an_image_is_a_function_of_seed_split_and_index_alone():
    for size in (16, 33):
        first, second = Scenes(10, size, "train", seed=3), Scenes(4000, size, "train", seed=3)
        for i in (0, 9, np.int64(4)):
            assert equal(first[i], first[i])
            assert equal(first[i], second[i])
    assert not equal(first[0], first[1])
    assert not equal(first[0], Scenes(10, 33, "train", seed=4)[0])
    again = pickle.loads(pickle.dumps(first))
    said = "Scenes(count=10, size=33, split='train', seed=3, difficulty=0.7)"
    assert repr(again) == repr(first) == said
    assert equal(again[7], first[7])
    splits = (Scenes(200, 16), Scenes(200, 16, "validation"))
    assert len({sample["image"].tobytes() for split in splits for sample in split}) == 400


def test_shapes_types_and_ranges_and_the_label_is_the_class_of_the_largest_area(many):
    for item in (Scenes(5, 8)[2], Scenes(5, 31)[2], *many):
        size = len(item["image"])
        assert {name: (x.shape, x.dtype) for name, x in item.items()} == {
            "image": ((size, size, 3), np.uint8),
            "label": ((), np.int32),
            "segmentation": ((size, size), np.uint8),
            "depth": ((size, size), np.float32),
        }
        assert 0 < item["depth"].min() < item["depth"].max() <= 10
        assert item["image"].std() > 5
        areas = np.bincount(item["segmentation"].ravel(), minlength=len(CLASSES) + 1)[1:]
        assert areas.shape == (len(CLASSES),)
        assert areas.argmax() == item["label"]


def test_labels_are_uniform(many):
    counts = np.bincount([item["label"] for item in many], minlength=len(CLASSES))
    expected = len(many) / len(CLASSES)
    # Chi-squared with 9 degrees of freedom: 27.9 is passed once in 1000.
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_each_pixel_shows_the_nearest_thing(described):
    for scene in described[:30]:
        _, classes, depth = clean(scene, 48)
        shown_alone = [(), *((thing,) for thing in scene.things)]
        alone = [clean(replace(scene, things=things), 48)[1:] for things in shown_alone]
        depths = np.stack([a[1] for a in alone])
        nearest = depths.argmin(axis=0)
        np.testing.assert_array_equal(depth, depths.min(axis=0))
        shown = np.take_along_axis(np.stack([a[0] for a in alone]), nearest[None], axis=0)[0]
        np.testing.assert_array_equal(classes, shown)


def test_the_background_recedes_to_the_wall(described):
    for scene in described[:100]:
        _, classes, empty = clean(replace(scene, things=()), 32)
        assert not classes.any()
        assert (np.diff(empty, axis=0) <= 0).all()
        assert empty[0, 0] == pytest.approx(scene.wall)
        assert empty[-1, 0] < 0.7 * scene.wall


def test_every_size_shows_the_same_scene(described):
    differences, agreements, depths = [], [], []
    for i, scene in enumerate(described[:50]):
        assert scene == Scenes(50, 64).scene(i)
        image, classes, depth = clean(scene, 32)
        image2, classes2, depth2 = clean(scene, 64)
        halved = image2.reshape(32, 2, 32, 2, 3).mean((1, 3))
        differences.append(np.abs(halved - image).mean())
        agreements.append((classes2[::2, ::2] == classes).mean())
        depths.append(np.median(np.abs(depth2.reshape(32, 2, 32, 2).mean((1, 3)) - depth) / depth))
    assert np.mean(differences) < 2.5  # of 255
    assert np.max(differences) < 6
    assert np.mean(agreements) > 0.95
    assert max(depths) < 0.02


def test_the_noise_is_the_scenes_own():
    scenes = Scenes(20, 64)
    for i, item in enumerate(scenes):
        scene = scenes.scene(i)
        image, _, _ = clean(scene, 64)
        difference = (item["image"].astype(float) - image)[(image > 60) & (image < 195)]
        assert difference.std() == pytest.approx(255 * scene.noise, rel=0.15, abs=0.3)


def test_difficulty_varies(many, described):
    counts = {len(scene.things) for scene in described}
    assert {3, 4, 5, 6} <= counts <= set(range(MAX_DISTRACTORS + 2))
    hard = np.array([scene.difficulty for scene in described])
    assert hard.min() < 0.05
    shares = [(item["segmentation"] == item["label"] + 1).mean() for item in many]
    assert np.corrcoef(hard, shares)[0, 1] < -0.4
    assert np.corrcoef(hard, [scene.noise for scene in described])[0, 1] > 0.5
    kinds = {thing.texture.kind for scene in described for thing in scene.things}
    assert kinds == set(range(len(TEXTURES)))


def test_colour_does_not_tell_the_class(many):
    labels = np.array([item["label"] for item in many])
    shown = [item["segmentation"] == item["label"] + 1 for item in many]
    colours = np.stack([x["image"][pixels].mean(0) for x, pixels in zip(many, shown, strict=True)])
    train, test = slice(0, 1000), slice(1000, None)
    means = np.stack([colours[train][labels[train] == k].mean(0) for k in range(len(CLASSES))])
    guesses = ((colours[test, None] - means) ** 2).sum(-1).argmin(1)
    assert (guesses == labels[test]).mean() < 0.18


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": -1}, "count=-1"),
        ({"size": 4}, "size=4: must be at least 8"),
        ({"split": "test"}, "split='test': must be one of train, validation"),
        ({"seed": 2**32}, "seed=4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Scenes(**{"count": 1, **arguments})
    for index in (-1, 5):
        with pytest.raises(IndexError, match=f"index={index}: .* count=5"):
            Scenes(5)[index]
