"""timm's ViTs by name, and their blocks in an AdaPerceiver."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.convert.backbone import adaperceiver_blocks, is_vit
from adaperceiver_jax.data.preprocess import CLIP_MEAN
from adaperceiver_jax.models.latent_stream import run_blocks
from tests.convert.test_names import same
from tests.small_models import random_params

PARAMETERS = {  # millions, as the paper gives them in table 5
    "deit_tiny_patch16_224.fb_in1k": 5.7,
    "deit_small_patch16_224.fb_in1k": 22.1,
    "deit_base_patch16_224.fb_in1k": 86.6,
    "deit3_large_patch16_224.fb_in1k": 304.4,
    "vit_huge_patch14_clip_224.laion2b_ft_in12k_in1k": 632.0,
    "vit_so150m2_patch16_reg1_gap_256.sbb_e200_in12k_ft_in1k": 136.1,
    # As timm counts them, docs/timm.md.
    "vit_so150m_patch16_reg4_gap_256.sbb_e250_in12k_ft_in1k": 134.1,
    "vit_large_patch14_clip_336.openai_ft_in12k_in1k": 304.5,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_models_have_as_many_parameters_as_elsewhere(name):
    config = ap.timm_model(name).config
    count = ap.count_params(ap.param_shapes(ap.ViT(config))) / 1e6
    assert count == pytest.approx(PARAMETERS[name], abs=0.06)


def test_the_teacher():
    teacher = ap.timm_model("timm/vit_huge_patch14_clip_224.laion2b_ft_in12k")
    assert teacher == ap.timm_model("vit_huge_patch14_clip_224.laion2b_ft_in12k")
    assert teacher.hub_id == "timm/vit_huge_patch14_clip_224.laion2b_ft_in12k"
    c = teacher.config
    assert (c.embed_dim, c.depth, c.num_heads, c.patch_size) == (1280, 32, 16, 14)
    assert (c.num_classes, c.pre_norm, c.norm_epsilon) == (11821, True, 1e-5)
    assert teacher.preprocessing.mean == CLIP_MEAN
    assert teacher.preprocessing.image_size == 224


def test_every_name_gives_a_model_and_one_that_is_not_known_names_the_nearest():
    names = ap.timm_models()
    assert len(names) == len(set(names)) > 80
    for name in names:
        model = ap.timm_model(name)
        assert model.name == name
        assert model.preprocessing.image_size == model.config.image_size
    with pytest.raises(ValueError, match=r"did you mean .*vit_huge_patch14_clip_224\.laion2b"):
        ap.timm_model("vit_huge_patch14_clip_224.laion2b_ft_in21k")
    with pytest.raises(ValueError, match=r"'resnet50' is not a timm ViT known here"):
        ap.timm_model("resnet50")


def test_a_folder_of_timms_is_read_and_one_of_another_model_refused(tmp_path):
    model = ap.ViT(ap.timm_model("deit_tiny_patch16_224.fb_in1k").config)
    ap.save_pretrained(model, random_params(model), tmp_path)
    config = {
        "architecture": "deit_tiny_patch16_224",
        "num_classes": 1000,
        "num_features": 192,
        "pretrained_cfg": {"tag": "fb_in1k", "mean": [0.485, 0.456, 0.406]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    found, params = ap.from_pretrained(tmp_path)
    assert found == model
    assert same(params, random_params(model))
    for change, message in (
        ({"num_classes": 7}, r"head\.weight is \(1000, 192\), the model's is \(7, 192"),
        ({"model_args": {"img_size": 384}}, r"with model_args=\{'img_size': 384\}: not known here"),
        (
            {"architecture": "swin_tiny_patch4_window7_224"},
            r"timm architecture 'swin_tiny.*deit_tiny_patch16_224",
        ),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            ap.from_pretrained(tmp_path)


VIT = ap.ViTConfig(
    embed_dim=24, depth=3, num_heads=3, mlp_ratio=2.57, image_size=16, patch_size=4, num_classes=5
)
ADAPERCEIVER = ap.AdaPerceiverConfig(
    embed_dim=24, depth=3, num_heads=3, image_size=16, patch_size=4, num_classes=5,
    max_latent_tokens=6, token_granularities=(6,), widths=(24,), block_mask="none",
    rope_scale=1e9,
)  # fmt: skip
"""A RoPE that hardly turns anything, and no mask: what a ViT's blocks are."""


def outputs_of_blocks(model, params, x):
    if isinstance(model, ap.ViT):
        blocks = nn.apply(lambda module: module.blocks(x, None)[0], model)
    else:
        blocks = nn.apply(lambda module: run_blocks(module, x, module.make_run(6), 3)[0], model)
    return jax.jit(blocks)({"params": params})


@pytest.mark.parametrize(
    ("qkv_bias", "theirs", "ours"), [(False, 0.1, 0.1), (True, 0.1, None), (True, None, 0.1)]
)
def test_the_blocks_compute_what_the_vits_do(qkv_bias, theirs, ours):
    vit = ap.ViT(dataclasses.replace(VIT, qkv_bias=qkv_bias, layer_scale=theirs))
    model = ap.AdaPerceiver(ADAPERCEIVER.replace(layer_scale=ours))
    vit_params, params = random_params(vit), random_params(model, seed=1)
    assert is_vit(vit_params)
    assert not is_vit(params)
    blocks = adaperceiver_blocks(vit_params, layer_scale=ours is not None)
    assert jax.tree.structure(blocks["blocks"]) == jax.tree.structure(params["blocks"])
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 6, 24)), jnp.float32)
    want = outputs_of_blocks(vit, vit_params, x)
    got = outputs_of_blocks(model, {**params, **blocks}, x)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
