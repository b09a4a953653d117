"""A learned policy from the folder of the run that learned it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.policies.learned import Learned, Peek
from adaperceiver_jax.tasks.make import RunConfig
from adaperceiver_jax.tasks.policy import policy_grid, policy_network
from adaperceiver_jax.tasks.weights import EMA, find_run
from adaperceiver_jax.train.loop import CONFIG
from adaperceiver_jax.train.settings import from_config


def find_policy(
    run: str | os.PathLike,
    model: AdaPerceiver,
    params: Any,
    *,
    weights: str = EMA,
    step: int | None = None,
) -> Learned:
    """The policy that a run of configs/policy_in1k.py learned, for the model it learned it for.

    Args:
      model, params: which it chooses for.
      weights, step: as of `find_run`.
    """
    try:
        config = from_config(RunConfig, json.loads((Path(run) / CONFIG).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{run}: not a run's folder: {error}") from error
    if config.task != "policy":
        raise ValueError(f"{run}: its task is {config.task!r}; must be 'policy'")
    settings = config.policy
    found = find_run(run, weights, step)
    network: Any = found.model
    wanted = policy_network(settings, model.config, network.dtype)
    if network.config != wanted.config:
        raise ValueError(
            f"{run}: learned for another model, {settings.path}: {network.config}; this one needs "
            f"{wanted.config}"
        )
    peek = None
    if settings.looks_at == "peek":
        peek = Peek(model.config.token_granularities[0], settings.peek_depth)
    return Learned(
        model,
        params,
        network,
        found.read(),
        policy_grid(settings, model.config),
        peek=peek,
        predicts_losses=settings.learner == "regress",
    )
