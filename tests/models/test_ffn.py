"""The FFN: cut, masked, and of a batch whose samples differ in width."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import adaperceiver_jax as ap
from adaperceiver_jax.models import ffn
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import KEEP_PRODUCTS
from adaperceiver_jax.models.platform import traced_for
from adaperceiver_jax.tasks.shapes import make_step
from tests import reference
from tests.small_models import TINY, random_images, random_params
from tests.train.small import PLAIN, run_config

CLOSE = dict(rtol=2e-5, atol=2e-5)
HIDDEN, BOUNDS = 64, (64, 16, 40, 0, 70)
LOOPS = 2
"""Over the parts from 16 to 40, and from 40 to 64."""
USED = ([16, 40, 64, 16, 40], [64] * 5, [3, 17, 16, 63, 41], [1, 0, 0, 0, 1], [41])
"""Of the widths' units, all, others, hardly any, one sample."""


@pytest.fixture(autouse=True)
def _small_products_are_skipped_too(monkeypatch):
    monkeypatch.setattr(ffn, "LEAST_PRODUCT", 1)


def mesh_of(devices: int) -> Mesh:
    return Mesh(np.array(jax.devices()[:devices]), ("data",))


def normal(*shape) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def filled(module: FFN, x) -> dict:
    """Parameters, all drawn from a normal distribution."""
    shapes = jax.eval_shape(lambda key: module.init(key, x), jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(shapes)
    return jax.tree.unflatten(
        tree, [0.3 * normal(i + 1, *x.shape)[i] for i, x in enumerate(leaves)]
    )


@pytest.fixture(params=["skipped", "masked"])
def either_way(request):
    """Units that samples do not use are skipped, as on one CPU, or masked."""
    with traced_for(mesh_of(1)) if request.param == "skipped" else contextlib.nullcontext():
        yield


@pytest.mark.usefixtures("either_way")
@pytest.mark.parametrize("kind", ["mlp", "swiglu"])
@pytest.mark.parametrize("act", ["gelu", "silu"])
def test_ffn_whole_cut_and_masked(kind, act):
    x, module = normal(2, 5, 6), FFN(6, 9, 4, kind, act, bounds=(2, 5))
    params = filled(module, x)
    state = {
        f"{name}.{leaf.replace('kernel', 'weight')}": value.T if leaf == "kernel" else value
        for name, layer in params.items()
        for leaf, value in layer.items()
    }

    def want(x, hidden):
        function = reference.gelu if act == "gelu" else reference.silu
        return reference.ffn(x, reference.Weights(state), function, hidden)

    variables = {"params": params}
    np.testing.assert_allclose(module.apply(variables, x), want(x, None), **CLOSE)
    np.testing.assert_allclose(module.apply(variables, x, 4), want(x, 4), **CLOSE)
    y = module.apply(variables, x, None, np.array([3, 7]))
    np.testing.assert_allclose(y[0], want(x[0], 3), **CLOSE)
    np.testing.assert_allclose(y[1], want(x[1], 7), **CLOSE)


def output_and_gradients(module: FFN, used, remat: bool = False):
    """(params, x) -> the output, and gradients of a sum of it with made-up weights."""

    def apply(params, x):
        return module.apply({"params": params}, x, None, jnp.array(used)).astype(jnp.float32)

    apply = jax.checkpoint(apply, policy=KEEP_PRODUCTS) if remat else apply

    def call(params, x):
        y, pull = jax.vjp(apply, params, x)
        return y, pull(jnp.asarray(normal(*x.shape)))

    return jax.jit(call)


@pytest.mark.parametrize("used", USED)
@pytest.mark.parametrize("remat", [False, True])
@pytest.mark.parametrize(("dtype", "most"), [("float32", 5e-6), ("bfloat16", 1e-2)])
def test_units_that_are_skipped_give_what_units_that_are_masked_give(used, remat, dtype, most):
    """To `most` of each array's largest entry: the output, and its gradients."""
    module = FFN(24, HIDDEN, 24, dtype=jnp.dtype(dtype), bounds=BOUNDS)
    x = normal(len(used), 7, 24)
    params = filled(module, x)
    want = output_and_gradients(module, used, remat)(params, x)
    with traced_for(mesh_of(1)):
        got = output_and_gradients(module, used, remat)(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=most * np.abs(b).max())


def test_skipped_products_are_not_made_again_in_the_backward_pass():
    """A loop forward and a loop backward for each part, and none beside them."""
    module = FFN(24, HIDDEN, 24, bounds=BOUNDS)
    x = normal(5, 7, 24)
    params = filled(module, x)
    with traced_for(mesh_of(1)):
        call = output_and_gradients(module, USED[0], remat=True)
        program = str(jax.make_jaxpr(call)(params, x))
    assert program.count("while[") == 2 * LOOPS


def test_units_cut_for_the_batch_may_be_fewer_for_a_sample_too():
    module = FFN(24, HIDDEN, 24, bounds=BOUNDS)
    x, used = normal(4, 7, 24), jnp.array([1, 5, 20, 3])
    params = {"params": filled(module, x)}
    with traced_for(mesh_of(1)):
        both = module.apply(params, x, 4, used)
        np.testing.assert_allclose(both, module.apply(params, x, None, used.clip(max=4)), **CLOSE)


@pytest.mark.parametrize(
    ("changes", "skips"),
    [
        ({}, True),
        ({"ffn_layer": "swiglu"}, False),
        ({"proj_drop": 0.1}, False),
    ],
)
def test_units_are_skipped_on_one_cpu_alone_where_nothing_but_a_product_needs_them(changes, skips):
    """By a program's loops."""
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY).replace(**changes))
    params, images = ap.param_shapes(model), random_images(model.config)

    def loops(mesh):
        def apply(params):
            widths = np.full(len(images), 8)
            rngs = {"dropout": jax.random.key(0)}
            return model.apply(
                {"params": params}, images, widths, train=True, rngs=rngs, method="readouts"
            ).token_logits

        with traced_for(mesh):
            return str(jax.make_jaxpr(apply)(params)).count("while[")

    others = loops(mesh_of(2))
    assert loops(mesh_of(1)) - others == (len(model.config.widths) - 1 if skips else 0)


@pytest.mark.parametrize(
    ("devices", "least", "skips"), [(1, 1, True), (2, 1, False), (1, 2**40, False)]
)
def test_a_run_skips_units_on_one_cpu_where_products_are_large(devices, least, skips, monkeypatch):
    """By the loops of its step's program, beside those of one that masks."""
    config = run_config("scratch", {**PLAIN, "model.widths": (4, 8, 12)})

    def count(product):
        monkeypatch.setattr(ffn, "LEAST_PRODUCT", product)
        step = make_step(config, jax.devices()[:devices])
        return str(step.programs.gradients.trace(*step.gradients).jaxpr).count("while[")

    assert (count(least) > count(2**60)) is skips


def test_the_papers_model_is_large_enough_and_a_trial_is_not(monkeypatch):
    monkeypatch.undo()
    for config, cuts in ((ap.AdaPerceiverConfig(), [1069, 1603]), (run_config().model, [])):
        hidden = [config.hidden_units(width) for width in config.widths]
        module = FFN(config.embed_dim, hidden[-1], config.embed_dim, bounds=tuple(hidden))
        assert module._cuts(config.max_latent_tokens * config.embed_dim, train=True) == cuts


def test_any_widths_give_the_same_readouts_skipped_or_masked():
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))
    params, images = random_params(model), random_images(model.config, 5)
    widths = np.array([24, 7, 8, 16, 1])

    def found():
        def call(params):
            return model.apply({"params": params}, images, widths, method="readouts").token_logits

        return jax.jit(call)(params)

    want = found()
    with traced_for(mesh_of(1)):
        np.testing.assert_allclose(found(), want, **CLOSE)
