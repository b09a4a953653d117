"""Images of any size, as a model was trained to see them."""

import numpy as np
import pytest
from PIL import Image

import adaperceiver_jax as ap


def image(width, height, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("size", [(224, 224), (500, 375), (100, 3000), (1, 1)])
def test_any_size_and_mode_becomes_the_models(size):
    for mode in ("RGB", "L", "RGBA"):
        out = ap.Preprocessing()(image(*size).convert(mode))
        assert (out.shape, out.dtype) == ((224, 224, 3), np.float32)
        assert np.isfinite(out).all()


def test_an_image_of_the_resized_size_is_only_cropped_and_normalised():
    pixels = np.asarray(image(248, 248))  # 224 / 0.9 = 248.9, rounded down
    out = ap.Preprocessing(crop=0.9, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))(pixels)
    want = (pixels[12:236, 12:236] / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.4]
    np.testing.assert_allclose(out, want, atol=1e-5)


def test_the_short_side_is_resized_and_the_middle_kept():
    wide = np.zeros((256, 512, 3), np.uint8)
    wide[:, 144:368] = 255  # the middle 224 columns
    out = ap.Preprocessing(mean=(0, 0, 0), std=(1, 1, 1))(wide)
    assert out.min() == 1
    squashed = ap.Preprocessing(mean=(0, 0, 0), std=(1, 1, 1), squash=True)(wide)
    assert squashed[:, 0].max() == 0


def test_what_it_cannot_be():
    with pytest.raises(ValueError, match=r"interpolation='cubic': must be one of bilinear, bic"):
        ap.Preprocessing(interpolation="cubic")
    with pytest.raises(ValueError, match=r"crop=1\.5: must be above 0, at most 1"):
        ap.Preprocessing(crop=1.5)
