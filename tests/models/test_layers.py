"""Each layer against a formula of its own, in NumPy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaperceiver_jax.models import adapters, layers, masks, rope
from adaperceiver_jax.models.attention import LatentAttention, attend, attend_to_all
from adaperceiver_jax.models.ffn import FFN
from tests import reference
from tests.small_models import run, tiny

pytestmark = pytest.mark.quick
CLOSE = dict(rtol=2e-5, atol=2e-5)


def normal(*shape) -> np.ndarray:
    return np.random.default_rng(math.prod(shape)).standard_normal(shape).astype(np.float32)


def filled(module, *inputs, **arguments):
    """Parameters of a module, all drawn from a normal distribution."""
    shapes = jax.eval_shape(lambda key: module.init(key, *inputs, **arguments), jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes["params"])
    values = [0.3 * normal(i + 1, *x.shape)[i] for i, x in enumerate(leaves)]
    return jax.tree.unflatten(tree, values)


def as_torch(params):
    """A module's parameters for `reference`: under PyTorch's names, kernels transposed."""
    state = {}
    for name, layer in params.items():
        state[f"{name}.weight"] = layer["kernel"].T
        state[f"{name}.bias"] = layer["bias"]
    return reference.Weights(state)


@pytest.mark.parametrize("mean", [0, 1000])  # its digits are kept far from zero
def test_layer_norm(mean):
    x, module = normal(2, 5, 7) + np.float32(mean), layers.LayerNorm(7)
    params, exact = filled(module, x), x.astype(np.float64)
    centred = exact - exact.mean(-1, keepdims=True)
    want = centred / np.sqrt(exact.var(-1, keepdims=True) + 1e-6) * params["scale"] + params["bias"]
    atol = 1e-3 if mean else 2e-5
    np.testing.assert_allclose(module.apply({"params": params}, x), want, rtol=2e-5, atol=atol)


def test_layer_norm_computes_in_float32_whatever_comes_in():
    x = jnp.asarray(normal(4, 64), jnp.bfloat16)
    variables = {"params": filled(layers.LayerNorm(64), x)}
    y = layers.LayerNorm(64, dtype=jnp.bfloat16).apply(variables, x)
    assert y.dtype == jnp.bfloat16
    want = layers.LayerNorm(64).apply(variables, x.astype(jnp.float32))
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_whole_and_cut(bias):
    x, module = normal(3, 6), layers.Linear(6, 8, bias)
    params = filled(module, x)
    add = params["bias"] if bias else np.zeros(8)
    y = module.apply({"params": params}, x)
    np.testing.assert_allclose(y, x @ params["kernel"] + add, **CLOSE)
    y = module.apply({"params": params}, x, columns=5)
    np.testing.assert_allclose(y, (x @ params["kernel"] + add)[:, :5], **CLOSE)
    y = module.apply({"params": params}, x[:, :4], rows=4)
    np.testing.assert_allclose(y, x[:, :4] @ params["kernel"][:4] + add, **CLOSE)


@pytest.mark.parametrize(("kind", "act"), [("mlp", "gelu"), ("swiglu", "silu")])
def test_ffn_whole_cut_and_masked(kind, act):
    x, module = normal(2, 5, 6), FFN(6, 9, 4, kind, act)
    params = filled(module, x)

    def want(x, hidden):
        return reference.ffn(x, as_torch(params), getattr(reference, act), hidden)

    variables = {"params": params}
    np.testing.assert_allclose(module.apply(variables, x), want(x, None), **CLOSE)
    np.testing.assert_allclose(module.apply(variables, x, 4), want(x, 4), **CLOSE)
    y = module.apply(variables, x, None, np.array([3, 7]))
    np.testing.assert_allclose(y[0], want(x[0], 3), **CLOSE)
    np.testing.assert_allclose(y[1], want(x[1], 7), **CLOSE)


@pytest.mark.parametrize(
    ("dtype", "rtol", "atol"), [("float32", 0, 2e-6), ("bfloat16", 4e-3, 2e-2)]
)
def test_gelu_is_exact_and_so_is_its_gradient(dtype, rtol, atol):
    x = jnp.linspace(-9, 9, 721).astype(dtype)
    exact = np.asarray(x, np.float64)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in exact])
    density = np.exp(-(exact**2) / 2) / math.sqrt(2 * math.pi)
    y, pull = jax.vjp(lambda x: layers.activation("gelu", x), x)
    assert y.dtype == x.dtype
    np.testing.assert_allclose(np.asarray(y, np.float64), exact * below, rtol=rtol, atol=atol)
    (slope,) = pull(jnp.ones_like(x))
    want = below + exact * density
    np.testing.assert_allclose(np.asarray(slope, np.float64), want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_rope_turns_interleaved_pairs(scale):
    x = normal(5, 2, 6)
    y = rope.apply_rope(x, rope.make_rope(5, 6, 100, scale))
    for position in range(5):
        for head in range(2):
            want = reference.rotate(x[position, head].astype(np.float64), position, 100, scale)
            np.testing.assert_allclose(y[position, head], want, **CLOSE)
    # It is squeezed only beyond the trained maximum.
    assert [rope.rope_scale(n, 256) for n in (32, 256, 512)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("num_tokens", "blocks"),
    [(16, (4, 8, 16)), (8, (4, 8)), (7, (4, 7)), (3, (3,)), (20, (4, 8, 16, 20)), (4, (4,))],
)
def test_block_mask_drops_and_appends_granularities_and_others_ignore_them(num_tokens, blocks):
    assert masks.make_mask("block", num_tokens, (4, 8, 16)).blocks == blocks
    for kind in ("block", "causal", "none"):
        array = masks.make_mask(kind, num_tokens, (4, 8, 16)).array()
        assert array is None or kind != "none"
        array = np.ones((num_tokens, num_tokens), bool) if array is None else array
        seen = reference.keys_seen(kind, num_tokens, (4, 8, 16))
        for query in range(num_tokens):
            assert array[query].tolist() == [key < seen(query) for key in range(num_tokens)]


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [("block", "cut"), ("block", "masked"), ("causal", "cut"), ("none", "masked")],
)
def test_latent_attention(kind, implementation):
    z, table = normal(2, 7, 12), rope.make_rope(7, 6, 100)
    mask = masks.make_mask(kind, 7, (2, 4))
    module = LatentAttention(12, 2, implementation=implementation)
    params = filled(module, z, table, mask)

    def turn(x, position):
        return reference.rotate(x, position, 100, 1.0)

    seen = reference.keys_seen(kind, 7, (2, 4))
    y = module.apply({"params": params}, z, table, mask)
    for ours, one in zip(y, z.astype(np.float64), strict=True):
        want = reference.attention(one, one, as_torch(params), 2, seen, turn, turn)
        np.testing.assert_allclose(ours, want, **CLOSE)


def cubic(x: float) -> float:
    """Keys' kernel with a = -1/2."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


def cubic_matrix(old: int, new: int) -> np.ndarray:
    """(new, old) weights of antialiased bicubic resampling, renormalised at the borders."""
    stretch = max(1.0, old / new)
    matrix = np.zeros((new, old))
    for i in range(new):
        centre = (i + 0.5) * old / new - 0.5
        matrix[i] = [cubic((j - centre) / stretch) for j in range(old)]
    return matrix / matrix.sum(1, keepdims=True)


@pytest.mark.parametrize("grid", [(4, 4), (6, 5), (3, 2)])
def test_positions_are_resampled_bicubically_with_antialiasing(grid):
    table = normal(1, 16, 3)
    y = adapters.resample_positions(table, *grid)
    square = table.reshape(4, 4, 3)
    want = np.einsum("ij,jkc->ikc", cubic_matrix(4, grid[0]), square)
    want = np.einsum("ij,kjc->kic", cubic_matrix(4, grid[1]), want).reshape(1, -1, 3)
    np.testing.assert_allclose(y, want, **CLOSE)


def test_fourier_maps():
    maps = adapters.fourier_maps(3, 5, 2, 8.0)
    assert maps.shape == (3, 5, 10)
    row, column = -1 + 2 * 2 / 2, -1 + 2 * 1 / 4  # pixel (2, 1)
    want = []
    for x in (row, column):
        want += [math.sin(math.pi * x), math.sin(8 * math.pi * x)]
        want += [math.cos(math.pi * x), math.cos(8 * math.pi * x), x]
    np.testing.assert_allclose(maps[2, 1], want, atol=1e-5)


def test_fourier_maps_do_not_take_the_images_precision():
    model, params, images = tiny(fourier_bands=4)
    half = jnp.asarray(images, jnp.bfloat16)
    ours = run(model, params, half).logits
    np.testing.assert_array_equal(ours, run(model, params, half.astype(jnp.float32)).logits)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    x = np.ones((4000, 2, 3), np.float32)
    y = np.asarray(layers.stochastic_depth(x, 0.25, jax.random.key(0)))
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert (y == y[:, :1, :1]).all()
    assert y.mean() == pytest.approx(1, abs=0.03)  # 3 standard errors


@pytest.mark.parametrize(
    ("shape", "dtype", "kept"),
    [
        ((5,), jnp.float32, jnp.float32),
        ((2, 3, 5), jnp.float32, jnp.float32),
        ((2, 3, 5), jnp.bfloat16, jnp.float32),
        ((2, 3, 5), jnp.float32, jnp.bfloat16),
    ],
)
def test_affine_is_differentiated_as_a_product_and_a_sum(shape, dtype, kept):
    """Against NumPy in float64; to bfloat16's 8 bits where anything is rounded to it."""
    rng = np.random.default_rng(0)
    x, grad = (jnp.asarray(rng.standard_normal((*shape[:-1], n)), jnp.float32) for n in (5, 7))
    kernel, bias = (jnp.asarray(rng.standard_normal(s), kept) for s in ((5, 7), (7,)))
    y, backward = jax.vjp(lambda *parts: layers.affine(*parts, dtype, dtype), x, kernel, bias)
    assert y.dtype == dtype
    found = backward(grad.astype(dtype))
    assert [g.dtype for g in found] == [jnp.float32, kept, kept]
    rows, wide = np.float64(x).reshape(-1, 5), np.float64(grad).reshape(-1, 7)
    want = (np.float64(grad) @ np.float64(kernel).T, rows.T @ wide, wide.sum(axis=0))
    atol = 1e-5 if dtype == kept == jnp.float32 else 0.1
    for ours, theirs in zip(found, want, strict=True):
        np.testing.assert_allclose(np.float64(ours), theirs, atol=atol, rtol=0)


def test_a_float32_kernels_gradient_is_not_rounded_to_bfloat16():
    """1001 has no bfloat16: the nearest are 1000 and 1004."""
    x, kernel = jnp.ones((1001, 1)), jnp.ones((1, 1))
    grads = jax.grad(
        lambda *parts: layers.affine(x, *parts, jnp.bfloat16, jnp.bfloat16).sum(), argnums=(0, 1)
    )(kernel, jnp.zeros(1))
    assert [float(g.sum()) for g in grads] == [1001.0, 1001.0]


def test_attention_that_is_normalised_last_gives_the_same_and_the_same_gradients():
    """To 1e-6 in float32; in bfloat16 no farther from the truth than the usual order."""
    rng = np.random.default_rng(0)
    soft = jnp.asarray(rng.standard_normal((3, 2, 17, 3, 8)), jnp.float32)
    for scale in (1.0, 30.0):  # soft, and all but one-hot
        exact = attend(*(scale * soft))
        ours = attend_to_all(*(scale * soft))
        np.testing.assert_allclose(ours, exact, rtol=1e-5, atol=1e-6 * scale)
        rounded = (scale * soft).astype(jnp.bfloat16)
        truth = attend(*rounded.astype(jnp.float32))
        ours, usual = (
            np.abs(f(*rounded).astype(jnp.float32) - truth).mean() for f in (attend_to_all, attend)
        )
        assert ours < 1.05 * usual

    def gradient(attention):
        loss = jax.grad(lambda x: attention(*x).astype(jnp.float32).var())
        return jax.jit(loss)(soft.astype(jnp.bfloat16))

    ours, want = gradient(attend_to_all), gradient(attend)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_array_equal(ours, want)
