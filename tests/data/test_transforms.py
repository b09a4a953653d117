"""Each transform against torchvision's pixels; what is drawn against its definition."""

import dataclasses
import math

import numpy as np
import pytest
from PIL import Image

from adaperceiver_jax.data import transforms
from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.decode import BadImageError
from adaperceiver_jax.data.transforms import OPERATIONS
from tests.data import torchvision_tables as tables

TABLES = np.load(tables.FILE)
CALLS = [name.partition(":")[2] for name in TABLES.files if name.startswith("amount:")]
PICTURE = tables.picture()


def off(image, name, kind="pil"):
    """The differences from a table, in grey levels."""
    return np.abs(np.asarray(image).astype(int) - TABLES[f"{kind}:{name}"].astype(int))


@pytest.mark.parametrize("call", CALLS)
def test_rand_augment_is_torchvisions_to_the_pixel(call):
    name, magnitude, sign = call.split(",")
    operation = OPERATIONS[name]
    amount = operation.amount(int(magnitude), 31, *PICTURE.size[::-1]) * int(sign)
    assert amount == TABLES[f"amount:{call}"]
    made = operation.apply(PICTURE, amount)
    if name == "Solarize":
        # For PIL images torchvision compares with 85.000003 where it means 85, of bin 20.
        assert off(made, call, "tensor").max() == 0
        assert (np.asarray(PICTURE)[off(made, call) > 0] == 85).all()
        return
    assert off(made, call).max() == 0
    if name in ("ShearX", "ShearY", "Rotate"):
        # For tensors torchvision rounds coordinates otherwise: some pixels are a neighbour's.
        assert (off(made, call, "tensor") > 1).mean() < 0.1
    else:
        assert off(made, call, "tensor").max() <= 1


def test_every_operation_of_torchvisions_is_there_and_its_amounts_are_spread_evenly():
    assert {call.split(",")[0] for call in CALLS} == set(OPERATIONS)
    signed = {call.split(",")[0] for call in CALLS if call.endswith(",-1")}
    assert signed == {name for name, operation in OPERATIONS.items() if operation.signed}
    for operation in OPERATIONS.values():
        few, many = (
            [operation.amount(magnitude, bins, 224, 336) for magnitude in range(bins)]
            for bins in (11, 31)
        )
        np.testing.assert_allclose(few, many[::3], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", tables.JITTER)
def test_colours_are_torchvisions_to_the_pixel(name):
    for amount in tables.JITTER[name]:
        made = transforms.adjust(PICTURE, name, amount)
        assert off(made, f"{name},{amount}").max() == 0
        # For tensors torchvision turns hues in floats, here and for PIL images it is in 256 steps.
        assert off(made, f"{name},{amount}", "tensor").max() <= (10 if name == "hue" else 1)


@pytest.mark.parametrize("fast", [True, False])
def test_cutting_and_resizing_is_torchvisions_to_one_grey_level(monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(transforms, "cykooz_resizer", None)
    for box in tables.CROPS:
        made = transforms.resize(PICTURE, tables.SIZE, box)
        for kind in ("pil", "tensor"):
            assert off(made, f"crop,{box}", kind).max() <= int(fast or kind == "tensor")


def test_turning_and_mirroring_are_torchvisions():
    for degrees in tables.DEGREES:
        made = transforms.rotate(PICTURE, degrees)
        assert off(made, f"rotate,{degrees}").max() == 0
        # For tensors torchvision blends the border with black; within it, one grey level.
        inside = (slice(5, -5), slice(5, -5))
        assert off(made, f"rotate,{degrees}", "tensor")[inside].max() <= 1
    assert off(transforms.mirror(PICTURE), "mirror").max() == 0


def test_sizes_from_one_pixel_to_many_are_resized_as_pillow_does():
    rng = np.random.default_rng(0)
    for _ in range(60):
        wide, tall, width, height = rng.integers(1, 300, 4).tolist()
        image = Image.fromarray(rng.integers(0, 256, (tall, wide, 3), np.uint8))
        want = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(np.asarray(transforms.resize(image, (height, width))) - want).max() <= 1


def test_crops_have_the_shares_and_proportions_asked_for():
    rng = np.random.default_rng(0)
    limits = (0.08, 1.0), (3 / 4, 4 / 3)
    boxes = np.array([transforms.draw_crop(rng, 300, 300, *limits) for _ in range(4000)])
    (left, top), (wide, tall) = boxes[:, :2].T, (boxes[:, 2:] - boxes[:, :2]).T
    assert min(left.min(), top.min()) >= 0
    assert boxes[:, 2:].max() <= 300
    areas, ratios = wide * tall / 90_000, wide / tall
    assert 0.075 < areas.min() < 0.09
    assert 0.95 < areas.max() <= 1
    assert 0.73 < ratios.min() < 0.76
    assert 1.32 < ratios.max() < 1.35
    assert abs(np.log(ratios).mean()) < 0.02  # log-uniform
    assert abs((left / np.maximum(300 - wide, 1)).mean() - 0.5) < 0.02
    assert abs(areas[areas < 0.5].mean() - 0.29) < 0.01  # uniform, where every shape fits


def test_where_no_crop_fits_it_is_the_largest_in_the_middle():
    rng = np.random.default_rng(0)
    for size, want in (
        ((100, 1000), (433, 0, 566, 100)),  # 133 x 100: 4 to 3
        ((1000, 100), (0, 433, 100, 566)),
        ((10, 10), (0, 0, 10, 10)),
    ):
        assert transforms.draw_crop(rng, *size, (1.2, 1.3), (3 / 4, 4 / 3)) == want


def test_rand_augment_draws_each_operation_and_sign_as_often(monkeypatch):
    seen = {name: [] for name in OPERATIONS}
    for name, operation in OPERATIONS.items():

        def kept(image, amount, signs=seen[name]):
            signs.append(amount >= 0)
            return image

        monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(operation, apply=kept))
    rng = np.random.default_rng(1)
    for _ in range(3500):
        transforms.rand_augment(PICTURE, rng, 2, 15, 31)
    assert sum(len(signs) for signs in seen.values()) == 7000
    for name, operation in OPERATIONS.items():
        assert 400 < len(seen[name]) < 600, name
        share = np.mean(seen[name])
        assert (0.42 < share < 0.58) if operation.signed else share == 1, name


def test_jitter_is_in_any_order_each_up_to_its_amount_and_0_changes_nothing(monkeypatch):
    made = []
    monkeypatch.setattr(transforms, "adjust", lambda image, *given: made.append(given) or image)
    rng, limits = np.random.default_rng(0), (0.25, 0.1, 0.2, 0.15)
    assert transforms.jitter(PICTURE, rng, (0, 0, 0, 0)) is PICTURE
    assert not made
    for _ in range(300):
        transforms.jitter(PICTURE, rng, limits)
    orders = [tuple(name for name, _ in made[i : i + 4]) for i in range(0, 1200, 4)]
    assert len(set(orders)) == 24
    assert all(len(set(order)) == 4 for order in orders)
    for name, limit in zip(transforms.COLOURS, limits, strict=True):
        changes = [amount - (name != "hue") for kind, amount in made if kind == name]
        assert -limit - 1e-9 <= min(changes) < -0.95 * limit
        assert 0.95 * limit < max(changes) <= limit + 1e-9


# Joint geometry.


def scene(height=48, width=64):
    """An image whose colours say where each pixel is, and maps that say the same."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([x * 4, y * 5, x * 0 + 200], -1).astype(np.uint8)
    labels = (x // 8 + 8 * (y // 8)).astype(np.uint8)
    depth = (0.1 * (1 + x // 8 + 8 * (y // 8))).astype(np.float32)
    return {"image": image, "segmentation": labels, "depth": depth, "name": "a scene"}


def both(augment, size=(48, 64), **more):
    inputs = ("image", "segmentation", "depth")
    return Preparation(size=size, inputs=inputs, augment=augment, **more)


@pytest.mark.parametrize(
    ("augment", "size"),
    [
        (AugmentSettings(crop=(0.3, 0.9)), (40, 100)),
        (AugmentSettings(rotation=15.0, flip=False), (48, 64)),
        (AugmentSettings(rotation=10.0, crop=(0.3, 0.9)), (48, 64)),
    ],
)
def test_an_image_and_its_maps_go_the_same_way(augment, size):
    preparation, source = both(augment, size), scene()
    moved = 0
    for seed in range(20):
        out = preparation.train(source, np.random.default_rng(seed))
        assert out["image"].shape == (*size, 3)
        image, labels = out["image"].astype(float), out["segmentation"]
        x, y = image[..., 0] / 4, image[..., 1] / 5
        want = np.clip(x // 8, 0, 7) + 8 * np.clip(y // 8, 0, 5)
        # Away from the edges of the fields, and from the black of the outside, also blended.
        near_edge = (np.abs((x + 4) % 8 - 4) < 1.5) | (np.abs((y + 4) % 8 - 4) < 1.5)
        inside = (labels != 255) & (image[..., 2] > 198) & ~near_edge
        inside &= (x > 2) & (y > 2) & (x < 61) & (y < 45)
        assert inside.mean() > 0.15
        np.testing.assert_array_equal(labels[inside], want[inside])
        np.testing.assert_allclose(out["depth"][inside], 0.1 * (1 + want[inside]), rtol=1e-6)
        # Depth is never blended, neither with a neighbour's nor with the outside's.
        assert np.isin(out["depth"], [0, *np.unique(source["depth"])]).all()
        np.testing.assert_array_equal(out["valid"], out["depth"] > 0)
        moved += not np.array_equal(labels, source["segmentation"])
    assert moved >= 5


def test_rotations_go_both_ways_and_what_they_did_not_see_does_not_count(monkeypatch):
    out = both(AugmentSettings(rotation=20.0, flip=False)).train(scene(), np.random.default_rng(5))
    outside = out["segmentation"] == 255
    assert 0.02 < outside.mean() < 0.4
    assert not out["valid"][outside].any()
    assert (out["depth"][outside] == 0).all()
    turns = []
    monkeypatch.setattr(transforms, "rotate", lambda image, turn: turns.append(turn) or image)
    rng = np.random.default_rng(0)
    for _ in range(300):
        both(AugmentSettings(rotation=2.5)).train(scene(), rng)
    assert -2.5 <= min(turns) < -2.45
    assert 2.45 < max(turns) <= 2.5
    assert abs(np.mean(turns)) < 0.2


def test_depth_beyond_the_largest_is_not_valid_and_more_than_255_classes_are_labels_too():
    source = scene()
    source["segmentation"] = source["segmentation"].astype(np.uint16) * 10
    settings = AugmentSettings(flip=False)
    out = both(settings, max_depth=1.0, num_classes=1000).evaluate(source)
    np.testing.assert_array_equal(out["valid"], source["depth"] <= 1)
    assert out["depth"].max() <= 1
    assert out["valid"].dtype == bool
    np.testing.assert_array_equal(out["segmentation"], source["segmentation"])


def test_ade20ks_labels_are_shifted():
    source = scene()
    source["segmentation"] = np.array([[0, 1], [2, 150]], np.uint8).repeat(24, 0).repeat(32, 1)
    shifted = both(AugmentSettings(flip=False), zero_is_ignored=True, num_classes=150)
    out = shifted.evaluate(source)["segmentation"]
    assert out[::24, ::32].tolist() == [[255, 0], [1, 149]]
    assert out.dtype == np.uint8
    source["segmentation"][:24] = 255
    assert shifted.evaluate(source)["segmentation"][::24, ::32].tolist() == [[255, 255], [1, 149]]
    turned = dataclasses.replace(shifted, augment=AugmentSettings(flip=False, rotation=30))
    assert 255 in turned.train(source, np.random.default_rng(0))["segmentation"]
    source["segmentation"][0, 0] = 151
    with pytest.raises(ValueError, match=r"a scene: its label is 150; must be in 0\.\.149"):
        shifted.evaluate(source)


def test_maps_of_another_size_than_the_image_are_refused_by_name():
    source = scene()
    source["depth"] = source["depth"][:40]
    preparation = both(AugmentSettings(crop=(0.5, 1.0)))
    for prepare in (preparation.evaluate, lambda x: preparation.train(x, np.random.default_rng(0))):
        with pytest.raises(BadImageError, match="a scene: its depth is 40 x 64, the image 48 x 64"):
            prepare(source)


def test_map_resizing_takes_the_nearest_pixel():
    labels = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    out = np.asarray(transforms.resize_map(labels, (4, 16)))
    rows = [math.floor((i + 0.5) * 2) for i in range(4)]
    columns = [math.floor((i + 0.5) / 2) for i in range(16)]
    np.testing.assert_array_equal(out, np.asarray(labels)[np.ix_(rows, columns)])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"crop": (0.5,)}, r"config.augment.crop=\(0.5,\): must be \(\) or two shares"),
        ({"crop": (0.5, 1.2)}, "up to 1"),
        ({"crop_ratio": (2, 1)}, "config.augment.crop_ratio"),
        ({"magnitude": 31}, r"config.augment.magnitude=31: must be in 0\.\.30"),
        ({"rand_augment": -1}, "config.augment.rand_augment=-1: must be at least 0"),
        ({"jitter": (0.1, 0.1)}, "four numbers"),
        ({"jitter": (0, 0, 0, 0.6)}, "hue's up to 0.5"),
        ({"rotation": -1}, "config.augment.rotation=-1"),
        ({"evaluation_crop": 0}, "config.augment.evaluation_crop=0"),
        ({"bins": 1}, "config.augment.bins=1: must be at least 2"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        AugmentSettings(**values)
