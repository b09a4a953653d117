"""ViTs against timm's, and the policy network against the reference's."""

import numpy as np
import pytest

import adaperceiver_jax as ap
from tests.parity.reading import OUTPUTS, read
from tests.small_models import run

VARIANTS = {
    "teacher_vit_plain": {},
    "teacher_vit_clip": dict(pre_norm=True, norm_epsilon=1e-5),
    "teacher_vit_gap_reg": dict(
        class_token=False, reg_tokens=2, global_pool="avg", layer_scale=1e-5
    ),
}


def vit_config(golden, name) -> ap.ViTConfig:
    sizes = {
        ours: golden.cases[theirs]
        for ours, theirs in (
            ("embed_dim", "embed_dim"),
            ("depth", "depth"),
            ("num_heads", "num_heads"),
            ("image_size", "img_size"),
            ("patch_size", "patch_size"),
            ("num_classes", "num_classes"),
        )
    }
    return ap.ViTConfig(**sizes, **VARIANTS[name])


@pytest.mark.parametrize("name", VARIANTS)
def test_vit(goldens, name):
    golden = read(goldens / name)
    model = ap.ViT(vit_config(golden, name))
    assert model.config.num_prefix_tokens == golden.cases["num_prefix_tokens"]
    out = run(model, golden.params(model), golden.images)
    np.testing.assert_allclose(out.logits, golden.arrays["logits"], **OUTPUTS)
    tokens = np.concatenate([out.prefix, out.features], axis=1)
    np.testing.assert_allclose(tokens, golden.arrays["features"], **OUTPUTS)
    back = ap.params_to_torch(model, golden.params(model))
    assert set(back) == set(golden.weights)
    for key, want in golden.weights.items():
        np.testing.assert_array_equal(back[key], want, err_msg=key)


def test_policy_network(goldens):
    golden = read(goldens / "policy_network")
    _, patches, dim = golden.arrays["patches"].shape
    choices = len(golden.cases["choices"])
    config = ap.PolicyConfig(embed_dim=dim, num_patches=patches, token_choices=choices)
    model = ap.PolicyNetwork(config)
    params = golden.params(model)
    out = run(model, params, golden.arrays["patches"])
    np.testing.assert_allclose(out.token_logits, golden.arrays["token_logits"], **OUTPUTS)
    back = ap.params_to_torch(model, params)
    assert set(back) == set(golden.weights)
    for key, want in golden.weights.items():
        np.testing.assert_array_equal(back[key], want, err_msg=key)
