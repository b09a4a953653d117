"""What fresh parameters look like: the reference's distributions, and nothing far out."""

import jax
import numpy as np

import adaperceiver_jax as ap

SIZES = dict(embed_dim=192, num_heads=3, depth=4, image_size=56, patch_size=14)
CONFIG = ap.AdaPerceiverConfig(
    **SIZES, widths=(96, 192), num_classes=100, output_feat_dim=64, fourier_bands=2
)


def fresh(model) -> dict[str, np.ndarray]:
    """Fresh parameters by their dotted path."""
    params = ap.init_params(model, jax.random.key(0))
    return {
        ".".join(entry.key for entry in path): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def assert_normal(values: np.ndarray, stddev: float, name: str) -> None:
    """Mean, deviation (to 5 standard errors) and no outlier beyond 7 deviations."""
    error = 5 * stddev / np.sqrt(values.size)
    assert abs(values.mean()) < error, name
    assert abs(values.std() - stddev) < error, name
    assert np.abs(values).max() < 7 * stddev, name


def test_adaperceiver():
    params = fresh(ap.AdaPerceiver(CONFIG))
    for name, values in params.items():
        leaf = name.rsplit(".", 1)[-1]
        if name.startswith("patch_embed.embed.proj"):
            bound = 1 / np.sqrt(14 * 14 * (3 + 10))
            assert np.abs(values).max() <= bound, name
            assert abs(values.std() - bound / np.sqrt(3)) < 0.2 * bound, name
        elif leaf == "kernel":
            assert_normal(values, 0.02, name)
        elif leaf == "bias":
            assert (values == 0).all(), name
        elif leaf == "scale":
            assert (values == 1).all(), name
        elif leaf == "gamma":
            np.testing.assert_array_equal(values, np.float32(1e-5), err_msg=name)
        elif leaf == "pos_embed":
            assert_normal(values, 0.02, name)
        else:
            assert name in ("process_latents.token", "output_latents.token")
            assert_normal(values, 1e-6, name)
    kernels = params["blocks.ffn.fc1.kernel"]  # blocks do not start alike
    assert (np.abs(np.diff(kernels, axis=0)).mean(axis=(1, 2)) > 0.01).all()


def test_head_convolutions_and_a_normal_latent():
    backbone = CONFIG.replace(num_classes=None, process_token_init="norm_randn")
    for model, fan_in in (
        (ap.SegmentationModel(ap.SegmentationConfig(backbone=backbone, num_classes=150)), 64),
        (ap.DepthModel(ap.DepthConfig(backbone=backbone, bins=64)), 64 * 9),
    ):
        params = fresh(model)
        kernel = params["head.conv_seg.kernel"]
        assert abs(kernel.std() - fan_in**-0.5) < 0.05 * fan_in**-0.5
        assert (params["head.conv_seg.bias"] == 0).all()
        assert_normal(params["backbone.process_latents.token"], 192**-0.5, "latent")


def test_a_small_sub_network_makes_all_the_parameters():
    model = ap.AdaPerceiver(CONFIG)
    images, cut = np.zeros((1, 56, 56, 3), np.float32), dict(num_tokens=4, width=96, depth=2)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images, **cut))["params"]
    assert params == ap.param_shapes(model)
