"""Learning a teacher's logits and features."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp


def distillation_kl(
    logits: jax.Array, teacher_logits: jax.Array, temperature: float = 1.0
) -> jax.Array:
    """KL(teacher || student) at a temperature, batch mean, times the temperature squared.

    logits (..., B, C), teacher_logits (B, C) -> (...).
    """
    chex.assert_rank(teacher_logits, 2)
    chex.assert_equal_shape_suffix([logits, teacher_logits], 2)
    student = jax.nn.log_softmax(logits / temperature)
    teacher = jax.nn.log_softmax(teacher_logits / temperature)
    kl = (jnp.exp(teacher) * (teacher - student)).sum(axis=-1)
    return kl.mean(axis=-1) * temperature**2


def feature_loss(
    features: jax.Array,
    teacher_features: jax.Array,
    cosine_weight: float = 0.9,
    magnitude_weight: float = 0.1,
) -> jax.Array:
    """0.9 (1 - cosine) + 0.1 smooth-L1 (beta 1), mean over samples and tokens.

    features (..., B, N, F), teacher_features (B, N, F) -> (...).
    """
    chex.assert_rank(teacher_features, 3)
    chex.assert_equal_shape_suffix([features, teacher_features], 3)
    dot = (features * teacher_features).sum(axis=-1)
    cosine = dot / (_norm(features) * _norm(teacher_features))
    error = jnp.abs(features - teacher_features)
    smooth_l1 = jnp.where(error < 1, 0.5 * error**2, error - 0.5).mean(axis=-1)
    loss = cosine_weight * (1 - cosine) + magnitude_weight * smooth_l1
    return loss.mean(axis=(-2, -1))


def _norm(x: jax.Array) -> jax.Array:
    """Over the last axis, at least 1e-8, with a finite gradient at zero."""
    return jnp.sqrt(jnp.maximum(jnp.square(x).sum(axis=-1), 1e-16))
