"""The training forward against the reference: every readout, loss and gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.losses.classification import soft_cross_entropy
from adaperceiver_jax.losses.depth import gradient_loss, sig_loss
from adaperceiver_jax.losses.distillation import distillation_kl, feature_loss
from adaperceiver_jax.losses.once_for_all import depth_weights, weighted_mean, weighted_sum
from adaperceiver_jax.losses.segmentation import IGNORE, pixel_cross_entropy
from tests.parity.reading import LOSSES, OUTPUTS, TRAINED, assert_gradients, depth_model, read
from tests.small_models import run

COMPUTED = {
    "scan": {},
    "remat": {"remat": True},
    "unrolled": {"unroll": 4},
    "masked": {"attention": "masked"},
}


def readouts(model, params, golden):
    return model.apply(
        {"params": params},
        golden.images,
        widths=np.array(golden.cases["widths"]),
        readout_tokens=np.array(golden.cases["readout_tokens_by_depth"]),
        method="readouts",
    )


def check_depth_weights(golden) -> np.ndarray:
    weights = depth_weights(4, "linear")
    np.testing.assert_allclose(weights, golden.cases["depth_weights"], rtol=1e-6)
    return weights


def assert_readouts(out, golden, name: str) -> None:
    """name is 'logits' or 'features'."""
    for by in ("token", "depth"):
        ours = getattr(out, f"{by}_{name}")
        for i, want in enumerate(golden.named(f"{name}.{by}", 4)):
            want = want[:, 0] if name == "logits" else want
            np.testing.assert_allclose(ours[i], want, **OUTPUTS)


def check(model, golden, compute) -> None:
    """`compute`: params -> (total loss, (readouts, losses by name))."""
    total = jax.jit(jax.value_and_grad(compute, has_aux=True))
    (_, (out, losses)), gradients = total(golden.params(model))
    for name, loss in losses.items():
        np.testing.assert_allclose(loss, golden.arrays[f"loss.{name}"], **LOSSES, err_msg=name)
    assert_gradients(model, gradients, golden)
    return out


@pytest.mark.parametrize(
    "computed", ["scan", *(pytest.param(c, marks=pytest.mark.slow) for c in [*COMPUTED][1:])]
)
def test_distillation(goldens, computed):
    golden = read(goldens / "train_distillation")
    model = TRAINED["train_distillation"].clone(**COMPUTED[computed])
    by_depth, by_token = check_depth_weights(golden), np.array(golden.cases["token_weights"])
    teacher, features = golden.arrays["teacher_logits"], golden.arrays["teacher_features"]

    def compute(params):
        out = readouts(model, params, golden)
        kl, feat = distillation_kl, feature_loss
        losses = {
            "token": weighted_mean(kl(out.token_logits, teacher), by_token),
            "depth": weighted_mean(kl(out.depth_logits, teacher), by_depth),
            "feature_token": weighted_sum(feat(out.token_features, features), by_token),
            "feature_depth": weighted_sum(feat(out.depth_features, features), by_depth),
        }
        return sum(losses.values()), (out, losses)

    out = check(model, golden, compute)
    assert_readouts(out, golden, "logits")
    assert_readouts(out, golden, "features")


@pytest.mark.slow
@pytest.mark.parametrize("computed", COMPUTED)
def test_classification(goldens, computed):
    golden = read(goldens / "train_classification")
    model = TRAINED["train_classification"].clone(**COMPUTED[computed])
    labels, by_depth = golden.arrays["soft_labels"], check_depth_weights(golden)

    def compute(params):
        out = readouts(model, params, golden)
        by_token = np.ones(4)
        losses = {
            "token": weighted_mean(soft_cross_entropy(out.token_logits, labels), by_token),
            "depth": weighted_mean(soft_cross_entropy(out.depth_logits, labels), by_depth),
        }
        return sum(losses.values()), (out, losses)

    assert_readouts(check(model, golden, compute), golden, "logits")


@pytest.mark.slow
def test_segmentation(goldens):
    golden = read(goldens / "train_segmentation")
    model = TRAINED["train_segmentation"]
    labels = jnp.asarray(golden.arrays["labels"])
    assert golden.cases["ignore_index"] == IGNORE

    def compute(params):
        out = model.apply({"params": params}, golden.images, method="readouts")
        totals = pixel_cross_entropy(out.logits, labels).sum(axis=(-3, -2, -1))
        by_token = totals / (labels != IGNORE).sum()
        loss = weighted_mean(by_token, np.ones(4))
        return loss, (out, {"token": loss})

    out = check(model, golden, compute)
    for ours, want in zip(out.logits, golden.named("logits.token", 4), strict=True):
        np.testing.assert_allclose(ours, want.transpose(0, 2, 3, 1), **OUTPUTS)


def test_depth(goldens):
    golden = read(goldens / "train_depth")
    model, depth = depth_model(golden), jnp.asarray(golden.arrays["depth"][:, 0])

    def compute(params):
        out = model.apply({"params": params}, golden.images, method="readouts")

        def mean(loss):
            return weighted_mean(jnp.stack([loss(pred) for pred in out.depth]), np.ones(4))

        losses = {
            "sig": 2.0 * mean(lambda pred: sig_loss(pred, depth)),
            "sig_warmup": 2.0 * mean(lambda pred: sig_loss(pred, depth, warm_up=True)),
            "grad": 0.5 * mean(lambda pred: gradient_loss(pred, depth, reference_axes=True)),
        }
        return losses["sig"] + losses["grad"], (out, losses)

    out = check(model, golden, compute)
    for ours, want in zip(out.depth, golden.named("depth.token", 4), strict=True):
        np.testing.assert_allclose(ours, want[:, 0], **OUTPUTS)
    evaluated = run(model, golden.params(model), golden.images).depth
    np.testing.assert_allclose(evaluated, golden.arrays["depth.eval"][:, 0], **OUTPUTS)
