"""The small layers that every model is made of, and how their parameters start."""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

PRODUCT = "product"
KEEP_PRODUCTS = jax.checkpoint_policies.save_only_these_names(PRODUCT)
"""Keeps the outputs of linear layers of a block that is computed again in the backward pass. The
rest (norms, activations, attention's scores) is soon made again, and far larger."""

# What the reference starts linear layers from. Its truncation is at +-2, a hundred standard
# deviations out, where a normal distribution never gets.
normal_02 = nn.initializers.normal(stddev=0.02)


def torch_uniform(fan_in: int) -> nn.initializers.Initializer:
    """Initial values of PyTorch's Linear and Conv: uniform in +-1 / sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )


def activation(name: str, x: jax.Array) -> jax.Array:
    """'gelu' (exact, with erf) or 'silu'."""
    if name != "gelu":
        return jax.nn.silu(x)
    # jax.nn.gelu goes by erfc, which takes a CPU twice as long. In float32: 1 + erf cancels.
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + jax.lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def affine(
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array | None,
    dtype: DTypeLike,
    out_dtype: DTypeLike,
) -> jax.Array:
    """x (..., m) @ kernel (m, n) + bias (n,), multiplied in `dtype`, given in `out_dtype`.

    The gradients of kernel and bias are summed, over samples and devices, in their own dtypes:
    left to itself, JAX would sum float32 parameters' in `dtype`.
    """
    y = jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=out_dtype)
    return y if bias is None else y + bias.astype(out_dtype)


def _affine_forward(x, kernel, bias, dtype, out_dtype):
    x_type = jnp.zeros((), x.dtype)
    residuals = (x.astype(dtype), kernel, None if bias is None else bias[:0], x_type)
    return affine(x, kernel, bias, dtype, out_dtype), residuals


def _affine_backward(dtype, out_dtype, residuals, grad):
    x, kernel, bias, x_type = residuals
    to_x = jnp.matmul(grad, kernel.astype(dtype).T, preferred_element_type=out_dtype)
    batch = tuple(range(x.ndim - 1))
    to_kernel = jnp.tensordot(x, grad, (batch, batch), preferred_element_type=kernel.dtype)
    to_bias = None if bias is None else grad.sum(axis=batch, dtype=bias.dtype)
    return to_x.astype(x_type.dtype), to_kernel, to_bias


affine.defvjp(_affine_forward, _affine_backward)


class Linear(nn.Module):
    """x @ kernel + bias, the kernel optionally cut to its first rows or columns.

    The cut is the paper's MatLinear at inference: a narrower layer, nothing masked is computed.
    """

    in_features: int
    features: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32
    out_dtype: DTypeLike | None = None
    """Dtype of the sums and the result; None is `dtype`."""

    def setup(self) -> None:
        self.kernel = self.param("kernel", normal_02, (self.in_features, self.features))
        zeros = nn.initializers.zeros
        self.bias = self.param("bias", zeros, (self.features,)) if self.use_bias else None

    def __call__(self, x: jax.Array, rows: int | None = None, columns: int | None = None):
        """(..., rows or in_features) -> (..., columns or features)."""
        bias = None if self.bias is None else self.bias[:columns]
        kernel = self.kernel[:rows, :columns]
        y = affine(x, kernel, bias, self.dtype, self.out_dtype or self.dtype)
        return checkpoint_name(y, PRODUCT)


class LayerNorm(nn.Module):
    """LayerNorm over the last axis; computed in float32, returned in `dtype`."""

    features: int
    epsilon: float = 1e-6
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        self.scale = self.param("scale", nn.initializers.ones, (self.features,))
        self.bias = self.param("bias", nn.initializers.zeros, (self.features,))

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.centre(x)
        return (x * self.inverse_deviation(x) * self.scale + self.bias).astype(self.dtype)

    def centre(self, x: jax.Array) -> jax.Array:
        """x (..., D) less its mean, in float32."""
        x = x.astype(jnp.float32)
        return x - x.mean(axis=-1, keepdims=True)

    def inverse_deviation(self, centred: jax.Array) -> jax.Array:
        """(..., D) in float32 -> (..., 1)."""
        variance = jnp.square(centred).mean(axis=-1, keepdims=True)
        return jax.lax.rsqrt(variance + self.epsilon)

    def fold(self, kernel: jax.Array, axis: int) -> jax.Array:
        """A linear map of the norm's outputs, along `axis` of kernel, as one of its inputs.

        norm(x) @ kernel = x @ fold(kernel) * inverse_deviation(centre(x)) + bias @ kernel. The
        mean of x cancels as far as x and fold(kernel) are exact: centre x first where they are
        rounded.
        """
        shape = [1] * kernel.ndim
        shape[axis] = self.features
        kernel = kernel.astype(jnp.float32) * self.scale.reshape(shape)
        return (kernel - kernel.mean(axis, keepdims=True)).astype(self.dtype)


class LayerScale(nn.Module):
    """One learned factor a channel."""

    features: int
    init_value: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        gamma = self.param("gamma", nn.initializers.constant(self.init_value), (self.features,))
        return x * gamma


def stochastic_depth(x: jax.Array, rate: jax.Array | float, key: jax.Array) -> jax.Array:
    """Drops the whole branch x (B, ...) of a sample with probability `rate`, rescales the rest."""
    kept = jax.random.bernoulli(key, 1 - rate, (x.shape[0],) + (1,) * (x.ndim - 1))
    return jnp.where(kept, x / (1 - rate), 0)
