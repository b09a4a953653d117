"""The FFN: cut, masked, and of a batch whose samples differ in width."""

import contextlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import adaperceiver_jax as ap
from adaperceiver_jax.models.ffn import FFN
from adaperceiver_jax.models.layers import KEEP_PRODUCTS
from adaperceiver_jax.models.platform import traced_for
from tests import reference
from tests.small_models import TINY, random_images, random_params

CLOSE = dict(rtol=2e-5, atol=2e-5)
HIDDEN, BOUNDS = 64, (16, 40)
USED = ([16, 40, 64, 16, 40], [64] * 5, [3, 17, 16, 63, 41], [1] * 5)
"""Of the widths' units, all, others, hardly any."""


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
@pytest.mark.parametrize(("dtype", "most"), [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_units_that_are_skipped_give_what_units_that_are_masked_give(used, remat, dtype, most):
    """To `most` of each array's largest entry: the output, and its gradients."""
    module = FFN(24, HIDDEN, 24, dtype=jnp.dtype(dtype), bounds=BOUNDS)
    x = normal(5, 7, 24)
    params = filled(module, x)
    want = output_and_gradients(module, used, remat)(params, x)
    with traced_for(mesh_of(1)):
        got = output_and_gradients(module, used, remat)(params, x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype == jnp.float32
        np.testing.assert_allclose(a, b, rtol=0, atol=most * np.abs(b).max())


def test_skipped_products_are_not_made_again_in_the_backward_pass():
    """A loop forward and a loop backward for each bound but the last, and none beside them."""
    module = FFN(24, HIDDEN, 24, bounds=BOUNDS)
    x = normal(5, 7, 24)
    params = filled(module, x)
    with traced_for(mesh_of(1)):
        call = output_and_gradients(module, USED[0], remat=True)
        program = str(jax.make_jaxpr(call)(params, x))
    assert program.count("while[") == 2 * len(BOUNDS)


@pytest.mark.parametrize(
    ("changes", "skips"),
    [
        ({}, True),
        ({"ffn_layer": "swiglu"}, False),
        ({"proj_drop": 0.1}, False),
    ],
)
def test_units_are_skipped_on_one_cpu_alone_where_nothing_but_a_product_needs_them(changes, skips):
    """By the loops of one program: the blocks' own, and those of the bounds below the last."""
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
