"""Mixup, cutmix and erasing, against what they are defined to be. Values agree to 1e-6."""

import jax
import numpy as np
import pytest
from jax.random import key

from adaperceiver_jax.data.mixing import MixingSettings, cutmix, erase, mix, mixup

BATCH, SIZE, CLASSES = 16, 12, 16
CLOSE = dict(rtol=0, atol=1e-6)


@pytest.fixture(scope="module")
def batch():
    """Image i is i everywhere, its label one-hot i: a pixel tells whose it is."""
    images = np.broadcast_to(np.arange(BATCH)[:, None, None, None], (BATCH, SIZE, SIZE, 3))
    return images.astype(np.float32), np.eye(CLASSES, dtype=np.float32)[:BATCH]


def halves(count, size):
    """Black images, the first half of one class and their partners of another."""
    labels = np.repeat([1.0, 0.0], count // 2)[:, None].astype(np.float32)
    return np.zeros((count, size, size, 1), np.float32), labels


# Alphas and probabilities are traced: a program takes long to compile.
blend, paste, rub = jax.jit(mixup), jax.jit(cutmix), jax.jit(erase)
mixed = jax.jit(mix, static_argnums=2)
EITHER = MixingSettings(mixup=0.8, cutmix=0.5)


def test_mixup_blends_images_and_labels_by_the_same_share(batch):
    images, labels = batch
    new, soft = (np.asarray(x) for x in blend(images, labels, 0.8, key(0)))
    share = np.diagonal(soft)
    assert ((share >= 0) & (share <= 1)).all()
    assert len(np.unique(share.round(5))) == BATCH  # a draw a sample
    own = share[:, None, None, None]
    np.testing.assert_allclose(new, own * images + (1 - own) * images[::-1], rtol=0, atol=1e-5)
    own = share[:, None]
    np.testing.assert_allclose(soft, own * labels + (1 - own) * labels[::-1], **CLOSE)


def test_mixups_shares_follow_the_beta_distribution():
    """Mean 1/2, variance 1 / (4 (2 alpha + 1)); 5 % of it at 40,000 draws is 10 sigma."""
    for alpha in (0.2, 1.0):
        share = np.asarray(blend(*halves(40_000, 1), alpha, key(1))[1])[:20_000, 0]
        assert abs(share.mean() - 0.5) < 0.01
        np.testing.assert_allclose(share.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.05)


def assert_rectangles(inside):
    """Each sample's (H, W): its rows are all the same."""
    rows, columns = inside.any(axis=2, keepdims=True), inside.any(axis=1, keepdims=True)
    np.testing.assert_array_equal(inside, rows & columns)


def test_cutmix_labels_by_the_pixels_that_are_left(batch):
    images, labels = batch
    places = set()
    for n in range(8):
        new, soft = (np.asarray(x) for x in paste(images, labels, 1.0, key(n)))
        taken = (new == images[::-1]).all(axis=-1)
        assert (taken | (new == images).all(axis=-1)).all()
        np.testing.assert_allclose(np.diagonal(soft), 1 - taken.mean(axis=(1, 2)), **CLOSE)
        np.testing.assert_allclose(soft.sum(axis=1), 1, **CLOSE)
        assert_rectangles(taken)
        places |= {one.tobytes() for one in taken}
    assert len(places) > 80  # a draw a sample


def test_cutmixs_area_follows_its_share_where_the_border_does_not_cut_it():
    """alpha 1e4: half of the image, so a side of 0.7 of it, less what the border cuts off.

    With centre c uniform and half-side h = 0.354 of the side, a side keeps 2h - h^2 on average.
    """
    share = np.asarray(paste(*halves(4000, 64), 1e4, key(3))[1])[:2000, 0]
    half = np.sqrt(0.5) / 2
    np.testing.assert_allclose(1 - share.mean(), (2 * half - half**2) ** 2, rtol=0.05)


def test_erasing_fills_a_rectangle_with_noise_as_often_as_asked(batch):
    images = np.full((400, SIZE, SIZE, 3), 100, np.float32)
    new = np.asarray(rub(images, 0.25, key(4)))
    erased = (new != 100).all(axis=-1)
    assert (erased == (new != 100).any(axis=-1)).all()
    hit = erased.any(axis=(1, 2))
    assert 70 < hit.sum() < 130  # 100 and 3.5 sigma
    assert_rectangles(erased)
    # 0.02 to 1/3 of the image, but for rounding to whole pixels and what does not fit
    assert erased[hit].mean(axis=(1, 2)).max() < 0.42
    noise = new[erased]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05
    assert len({one.tobytes() for one in erased[hit]}) > 50
    np.testing.assert_array_equal(rub(images, 0.0, key(4)), images)
    assert (np.asarray(rub(images, 1.0, key(4))) != 100).any(axis=(1, 2, 3)).all()


def test_a_batch_gets_mixup_or_cutmix_as_the_key_decides_and_each_alone_does_only_its_own(batch):
    images, labels = batch

    def own(x):
        return bool(((x == images) | (x == images[::-1])).all())

    made = [mixed(images, labels, EITHER, key(n)) for n in (*range(40), 0)]
    assert 8 < sum(own(new) for new, _ in made) < 32
    for first, other, again in zip(made[0], made[1], made[-1], strict=True):
        np.testing.assert_array_equal(first, again)
        assert (first != other).any()
    same, untouched = mix(images, labels, MixingSettings(), key(0))
    assert same is images
    assert untouched is labels
    alone = (MixingSettings(**{kind: 1.0}) for kind in ("mixup", "cutmix", "erase"))
    (blended, soft), (pasted, parts), (erased, unmixed) = (
        mixed(images, labels, settings, key(0)) for settings in alone
    )
    np.testing.assert_allclose(blended[:, 0, 0, 0], soft @ np.arange(BATCH), rtol=0, atol=1e-5)
    assert (own(blended), own(pasted), own(erased)) == (False, True, False)
    assert (np.diagonal(parts) < 1).any()
    np.testing.assert_array_equal(unmixed, labels)


def test_settings_out_of_range_are_errors():
    for name, value in dict(mixup=-0.1, cutmix=-1.0, erase=1.5, label_smoothing=-0.1).items():
        with pytest.raises(ValueError, match=rf"mixing.{name}={value}: must be"):
            MixingSettings(**{name: value})
