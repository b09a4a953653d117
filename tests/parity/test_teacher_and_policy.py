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
    same = ("embed_dim", "depth", "num_heads", "patch_size", "num_classes")
    sizes = {field: golden.cases[field] for field in same}
    return ap.ViTConfig(**sizes, image_size=golden.cases["img_size"], **VARIANTS[name])


def assert_same_weights(model, golden) -> None:
    """There and back."""
    back = ap.params_to_torch(model, golden.params(model))
    assert set(back) == set(golden.weights)
    for key, want in golden.weights.items():
        np.testing.assert_array_equal(back[key], want, err_msg=key)


@pytest.mark.parametrize("name", VARIANTS)
def test_vit(goldens, name):
    golden = read(goldens / name)
    model = ap.ViT(vit_config(golden, name))
    assert model.config.num_prefix_tokens == golden.cases["num_prefix_tokens"]
    out = run(model, golden.params(model), golden.images)
    np.testing.assert_allclose(out.logits, golden.arrays["logits"], **OUTPUTS)
    tokens = np.concatenate([out.prefix, out.features], axis=1)
    np.testing.assert_allclose(tokens, golden.arrays["features"], **OUTPUTS)
    assert_same_weights(model, golden)


def test_policy_network(goldens):
    golden = read(goldens / "policy_network")
    _, patches, dim = golden.arrays["patches"].shape
    choices = len(golden.cases["choices"])
    config = ap.PolicyConfig(embed_dim=dim, num_patches=patches, token_choices=choices)
    model = ap.PolicyNetwork(config)
    out = run(model, golden.params(model), golden.arrays["patches"])
    np.testing.assert_allclose(out.token_logits, golden.arrays["token_logits"], **OUTPUTS)
    assert_same_weights(model, golden)
