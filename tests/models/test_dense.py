"""The dense heads against formulas of their own."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.models.dense_heads import MaskTransformer
from adaperceiver_jax.models.vit import ViTBlock
from tests.small_models import TINY, random_images, random_params, run

CLOSE = dict(rtol=2e-5, atol=2e-5)
BACKBONE = ap.AdaPerceiverConfig(**{**TINY, "num_classes": None}, output_feat_dim=6)

MODELS = [
    ap.SegmentationModel(ap.SegmentationConfig(backbone=BACKBONE, num_classes=3)),
    ap.DepthModel(ap.DepthConfig(backbone=BACKBONE, bins=4)),
]


def linear_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) weights of bilinear resampling with half-pixel centres, clamped at the edges."""
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
        low = min(int(centre), old - 2) if old > 1 else 0
        matrix[i, low] += 1 - (centre - low)
        if old > 1:
            matrix[i, low + 1] += centre - low
    return matrix


def bilinear(x, height, width):
    x = np.einsum("ij,...jkc->...ikc", linear_matrix(x.shape[-3], height), x)
    return np.einsum("ij,...kjc->...kic", linear_matrix(x.shape[-2], width), x)


FURTHER = dict(token_granularities=(5, 16, 32))


@pytest.mark.parametrize("model", MODELS)
def test_readouts_are_every_granularitys_own_prediction(model):
    """Also of granularities of one call: segmentation trains at one beyond the config's."""
    params, images = random_params(model), random_images(BACKBONE)
    for chosen, count, place, tokens in (({}, 4, 1, 4), (FURTHER, 3, 2, 32)):
        (many,) = jax.tree.leaves(run(model, params, images, "readouts", **chosen))
        assert len(many) == count
        (one,) = jax.tree.leaves(run(model, params, images, num_tokens=tokens, **chosen))
        np.testing.assert_allclose(many[place], one, **CLOSE)
    (plain,) = jax.tree.leaves(run(model, params, images, num_tokens=32))
    assert np.abs(plain - one).max() > 1e-4


VIT = ap.ViTConfig(
    embed_dim=12, depth=2, reg_tokens=1, num_heads=2, patch_size=4, image_size=12, num_classes=None
)


def layer_norm(x, p, epsilon=1e-6):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon)
    return x * p["scale"] + p["bias"]


def test_on_a_vit():
    """The class token comes first, each token through the MLP before."""
    config = ap.SegmentationConfig(backbone=VIT, num_classes=3, class_token=True, mlp=True)
    model = ap.SegmentationModel(config)
    params, images = random_params(model), random_images(VIT, size=(12, 20))
    out = run(ap.ViT(VIT), params["backbone"], images)
    tokens = np.concatenate([out.prefix, out.features], axis=1)
    p = params["mlp"]
    hidden = tokens @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    tokens = np.asarray(jax.nn.gelu(hidden, approximate=False)) @ p["fc2"]["kernel"]
    tokens = tokens + p["fc2"]["bias"]
    x = tokens[:, 2:]  # behind class token and register
    x = np.concatenate([np.repeat(tokens[:, :1], 15, axis=1), x], axis=-1)
    x, head = layer_norm(x.reshape(2, 3, 5, -1), params["head"]["bn"]), params["head"]["conv_seg"]
    want = bilinear(x @ head["kernel"][0, 0] + head["bias"], 12, 20)
    np.testing.assert_allclose(run(model, params, images).logits, want, **CLOSE)
    (readout,) = run(model, params, images, "readouts").logits
    np.testing.assert_allclose(readout, want, **CLOSE)


def test_the_mask_transformer():
    """Against its definition, its blocks apart, which are a ViT's."""
    head = MaskTransformer(num_classes=3, features=8, depth=2)
    x = np.random.default_rng(0).standard_normal((2, 3, 5, 6)).astype(np.float32)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), x))["params"]
    rng = np.random.default_rng(1)
    p = jax.tree.map(lambda s: 0.5 * rng.standard_normal(s.shape).astype(np.float32), shapes)
    tokens = x.reshape(2, 15, 6) @ p["proj_dec"]["kernel"] + p["proj_dec"]["bias"]
    tokens = np.concatenate([tokens, np.repeat(p["cls_emb"], 2, axis=0)], axis=1)
    sizes = ap.ViTConfig(embed_dim=8, depth=2, num_heads=1, num_classes=None)
    run_block = jax.jit(ViTBlock(sizes).apply)
    for i in range(2):
        block = jax.tree.map(lambda leaf, i=i: leaf[i], p["blocks"])
        tokens = np.asarray(run_block({"params": block}, tokens, None)[0])
    tokens = layer_norm(tokens, p["decoder_norm"])
    patches = tokens[:, :15] @ p["proj_patch"]["kernel"]
    classes = tokens[:, 15:] @ p["proj_classes"]["kernel"]
    cosines = np.einsum("bpc,bkc->bpk", patches, classes)
    cosines = cosines / np.linalg.norm(patches, axis=-1)[..., None]
    cosines = cosines / np.linalg.norm(classes, axis=-1)[:, None]
    want = layer_norm(cosines, p["mask_norm"]).reshape(2, 3, 5, 3)
    np.testing.assert_allclose(jax.jit(head.apply)({"params": p}, x), want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_readouts_through_any_function_of_the_maps_recomputed_or_not():
    model, images = MODELS[0], random_images(BACKBONE)
    params = random_params(model)

    def loss(params, remat):
        read = lambda maps: (maps**2).mean((1, 2, 3))  # noqa: E731
        again = model.clone(remat=remat)
        squares = again.apply({"params": params}, read, images, method="map_readouts")
        assert squares.shape == (len(BACKBONE.token_granularities), 2)
        return squares.sum(), squares

    compute = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    (plain, squares), (again, same) = (compute(params, remat) for remat in (False, True))
    np.testing.assert_allclose(squares, same, rtol=1e-6)
    maps = run(model, params, images, "maps", num_tokens=4)
    np.testing.assert_allclose(squares[1], (maps**2).mean((1, 2, 3)), rtol=1e-4)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
