"""Files as they come: other formats, damaged ones, large ones."""

import io

import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap
from adaperceiver_jax.data.augment import AugmentSettings, Preparation
from adaperceiver_jax.data.decode import BadImageError, decode, depth_map, label_map, read_image


def picture(height=60, width=80, seed=0):
    """Smooth, so that JPEG keeps it."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(40, 216, (4, 5, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def file(image, kind="JPEG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decoded(data, name="x"):
    return np.asarray(decode(read_image(data, name), name))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "PPM"])
def test_other_formats(kind):
    image = picture()
    out = decoded(file(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert out.shape == (60, 80, 3)
    assert np.abs(out.astype(int) - np.asarray(image)).mean() < (6 if kind == "GIF" else 0.01)


def test_other_colours_become_rgb_16_bits_8_and_numbers_are_no_image():
    for mode in ("L", "RGBA", "P", "CMYK", "1", "LA"):
        kind = "JPEG" if mode in ("CMYK", "L") else "PNG"
        out = decoded(file(picture().convert(mode), kind))
        assert (out.shape, out.dtype) == ((60, 80, 3), np.uint8)
    grey = np.arange(0, 65536, 16, np.uint16).reshape(64, 64)
    for kind in ("PNG", "TIFF"):
        out = decoded(file(Image.fromarray(grey), kind))
        np.testing.assert_array_equal(out, (grey >> 8)[..., None].repeat(3, -1))
    for dtype in (np.int32, np.float32):
        with pytest.raises(BadImageError, match="x: cannot be decoded: holds numbers of 32 bits"):
            decoded(file(Image.fromarray(np.ones((4, 5), dtype)), "TIFF"))


def test_damaged_files_are_named_and_every_way_of_cutting_one_short_is_seen():
    for data, message in (
        (b"no image at all", "is no image"),
        (file(picture())[:700], "cut short"),
    ):
        with pytest.raises(BadImageError, match=rf"a/b\.jpg: cannot be decoded: .*{message}"):
            decoded(data, "a/b.jpg")
    for data in (file(picture()), file(picture(), "PNG")):
        for end in range(0, len(data) - 40, 97):
            with pytest.raises(BadImageError):
                decoded(data[:end])


def test_label_maps_of_all_kinds():
    labels = np.random.default_rng(0).integers(0, 200, (6, 9)).astype(np.uint8)
    grey, palette = Image.fromarray(labels), Image.fromarray(labels)
    palette.putpalette(list(range(256)) * 3)
    assert palette.mode == "P"
    three = Image.fromarray(np.stack([labels] * 3, -1))
    clear = Image.merge("LA", (grey, Image.new("L", (9, 6), 77)))
    for image in (grey, palette, three, clear):
        np.testing.assert_array_equal(np.asarray(label_map(file(image, "PNG"), "x")), labels)
    wide = labels.astype(np.uint16) * 300
    found = label_map(file(Image.fromarray(wide), "PNG"), "x")
    np.testing.assert_array_equal(np.asarray(found), wide)
    with pytest.raises(BadImageError, match=r"the annotation of y\.png is in colours"):
        label_map(file(picture(), "PNG"), "y.png")
    with pytest.raises(BadImageError, match=r"y\.png: cannot be decoded"):
        label_map(file(grey, "PNG")[:50], "y.png")


def test_depth_maps_of_all_kinds():
    metres = np.random.default_rng(0).uniform(0, 9, (6, 9)).astype(np.float32)
    out = io.BytesIO()
    np.save(out, metres.astype(np.float16))
    np.testing.assert_allclose(np.asarray(depth_map(out.getvalue(), "x", 1.0)), metres, rtol=1e-3)
    png = file(Image.fromarray(np.round(metres * 1000).astype(np.uint16)), "PNG")
    np.testing.assert_allclose(np.asarray(depth_map(png, "x", 1000.0)), metres, atol=6e-4)
    tiff = file(Image.fromarray(metres), "TIFF")
    np.testing.assert_array_equal(np.asarray(depth_map(tiff, "x", 1000.0)), metres)
    metres[0, 0] = np.nan
    assert np.asarray(depth_map(metres[..., None], "x", 1.0))[0, 0] == 0
    with pytest.raises(BadImageError, match=r"the depth of z: .*it has shape \(6, 9, 2\)"):
        depth_map(np.zeros((6, 9, 2), np.float32), "z", 1.0)
    with pytest.raises(BadImageError, match="z: cannot be decoded"):
        depth_map(out.getvalue()[:90], "z", 1.0)


def test_large_jpegs_are_decoded_at_a_fraction_and_look_the_same(monkeypatch):
    image = picture(2000, 2600)
    data = file(image, quality=95)
    settings = AugmentSettings(crop=(0.3, 1.0), flip=False)
    preparation = Preparation(size=(224, 224), augment=settings)
    sample = {"image": data, "label": 0, "name": "x"}
    whole = {"image": np.asarray(image), "label": 0, "name": "x"}
    sizes = set()

    def recorded(opened, name):
        sizes.add(opened.size)
        return decode(opened, name)

    monkeypatch.setattr("adaperceiver_jax.data.augment.decode", recorded)
    for seed in range(3):
        ours = preparation.train(sample, np.random.default_rng(seed))["image"]
        want = preparation.train(whole, np.random.default_rng(seed))["image"]
        assert np.abs(ours.astype(int) - want).mean() < 1
        assert np.abs(ours.astype(int) - want).max() <= 6
    assert sizes - {image.size} <= {(1300, 1000), (650, 500)}
    assert len(sizes) > 1


@pytest.mark.parametrize("size", [(901, 1200), (1801, 2402), (3601, 4800), (2402, 1801)])
def test_nothing_black_comes_in_at_the_edges_of_a_fraction(size):
    white = {"image": file(Image.new("RGB", size, "white")), "label": 0, "name": "x"}
    settings = AugmentSettings(crop=(1.0, 1.0), crop_ratio=(0.5, 2.0), flip=False)
    out = Preparation(size=(224, 224), augment=settings).train(white, np.random.default_rng(0))
    assert out["image"].min() == 255


def test_evaluation_decodes_everything_and_is_what_preprocessing_gives():
    preparation = Preparation(
        size=(224, 224), augment=AugmentSettings(crop=(0.08, 1.0), rand_augment=2)
    )
    data = file(picture(900, 1300), quality=95)
    out = preparation.evaluate({"image": data, "label": 3, "name": "x"})
    want = ap.Preprocessing().pixels(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(out["image"], want)
    assert out["label"].dtype == np.int32
