"""Whole models of random configurations against plain NumPy in float64."""

import dataclasses

import numpy as np
import pytest

import adaperceiver_jax as ap
from tests import reference
from tests.models.test_layers import cubic_matrix
from tests.small_models import model_and_params, random_images, random_params, run, seeds

CLOSE = dict(rtol=5e-5, atol=5e-5)  # float32 against float64
VIT = ap.ViTConfig(embed_dim=12, depth=2, num_heads=2, image_size=8, patch_size=4, num_classes=3)


def assert_outputs(out, want) -> None:
    logits, features = want
    if out.logits is not None:
        np.testing.assert_allclose(out.logits, logits, **CLOSE)
    if out.features is not None:
        np.testing.assert_allclose(out.features, features, **CLOSE)


@pytest.mark.parametrize("seed", seeds(5))
def test_adaperceiver(seed):
    model, params = model_and_params(seed)
    c = model.config
    draw = np.random.default_rng(seed)
    sub_network = dict(
        num_tokens=int(draw.integers(1, c.max_latent_tokens + 4)),
        width=int(draw.integers(1, c.embed_dim + 1)),
        depth=int(draw.integers(1, c.depth + 1)),
    )
    images = random_images(c, seed=seed)
    state = ap.params_to_torch(model, params)
    out = run(model, params, images, **sub_network)
    assert_outputs(out, reference.forward(state, c, images, **sub_network))


@pytest.mark.parametrize("seed", seeds(2))
def test_readouts(seed):
    model, params = model_and_params(seed, block_mask="block", output_feat_dim=6, depth=2)
    c = model.config
    granularities, n = c.token_granularities, c.token_granularities[-1]
    images, widths = random_images(c, 2, seed), np.array(c.widths, np.int32)
    read = np.random.default_rng(seed).choice(granularities, c.depth).astype(np.int32)
    out = run(model, params, images, "readouts", widths=widths, readout_tokens=read)
    state = ap.params_to_torch(model, params)
    for sample, width in enumerate(widths):
        one = images[sample : sample + 1]
        for name, readouts in (
            ("token", [(t, c.depth) for t in granularities]),
            ("depth", [(t, l) for l, t in enumerate(read, start=1)]),
        ):
            for i, (t, l) in enumerate(readouts):
                logits, features = reference.forward(state, c, one, n, width, l, read_tokens=int(t))
                if c.num_classes:
                    ours = getattr(out, f"{name}_logits")[i, sample]
                    np.testing.assert_allclose(ours, logits[0], **CLOSE)
                ours = getattr(out, f"{name}_features")[i, sample]
                np.testing.assert_allclose(ours, features[0], **CLOSE)


def test_rope_scale_by_config_replaces_the_references_rule():
    model, params = model_and_params(1, rope_scale=2.0)
    images, state = random_images(model.config), ap.params_to_torch(model, params)
    out = run(model, params, images, num_tokens=3)
    assert_outputs(out, reference.forward(state, model.config, images, 3))
    plain = model.clone(config=model.config.replace(rope_scale=None))
    other = run(plain, params, images, num_tokens=3)
    ours = out.features if out.logits is None else out.logits
    theirs = other.features if out.logits is None else other.logits
    assert np.abs(ours - theirs).max() > 1e-3


@pytest.mark.parametrize(
    "variant",
    [
        dict(pre_norm=True, norm_epsilon=0.1, reg_tokens=1, fc_norm=True),
        dict(no_embed_class=True, reg_tokens=2, layer_scale=0.1),
        dict(class_token=False, reg_tokens=4, global_pool="avg", fc_norm=False),
        dict(class_token=False, reg_tokens=1, global_pool="avg", qkv_bias=False, layer_scale=0.1),
    ],
)
def test_vit(variant):
    config = dataclasses.replace(VIT, **variant)
    model = ap.ViT(config)
    params, images = random_params(model), random_images(config)
    out = run(model, params, images)
    logits, tokens = reference.vit_forward(ap.params_to_torch(model, params), config, images)
    np.testing.assert_allclose(out.logits, logits, **CLOSE)
    ours = np.concatenate([out.prefix, out.features], axis=1)
    np.testing.assert_allclose(ours, tokens, **CLOSE)


def test_vit_takes_images_of_other_sizes():
    config = dataclasses.replace(VIT, image_size=16)
    model = ap.ViT(config)
    params, images = random_params(model), random_images(config, size=(12, 24))
    out = run(model, params, images)
    state = ap.params_to_torch(model, params)
    table = state["pos_embed"]  # the class token's row, then 4 x 4
    grid = np.einsum("ij,jkc->ikc", cubic_matrix(4, 3), table[0, 1:].reshape(4, 4, 12))
    grid = np.einsum("ij,kjc->kic", cubic_matrix(4, 6), grid).reshape(1, 18, 12)
    state["pos_embed"] = np.concatenate([table[:, :1], grid], axis=1)
    logits, tokens = reference.vit_forward(state, config, images)
    np.testing.assert_allclose(out.logits, logits, **CLOSE)
    np.testing.assert_allclose(out.features, tokens[:, 1:], **CLOSE)


def test_policy_network():
    config = ap.PolicyConfig(
        embed_dim=8, num_patches=6, token_choices=4, width_choices=3, depth_choices=2
    )
    model = ap.PolicyNetwork(config)
    params = random_params(model)
    patches = np.random.default_rng(0).standard_normal((3, 6, 8)).astype(np.float32)
    out = run(model, params, patches)
    state = ap.params_to_torch(model, params)
    for axis, head in (("token", "tokens"), ("width", "mat_dim"), ("depth", "depth")):
        want = reference.policy_forward(state, patches, f"head_{head}")
        np.testing.assert_allclose(getattr(out, f"{axis}_logits"), want, **CLOSE)
