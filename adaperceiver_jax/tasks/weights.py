"""Opening a model and its weights: a run's folder, a hub folder or id, a file; a learned policy."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from adaperceiver_jax.convert.files import PICKLED, SAFETENSORS
from adaperceiver_jax.convert.hub import Pretrained, find_model, find_pretrained
from adaperceiver_jax.convert.names import check_params
from adaperceiver_jax.convert.recognise import find_in_file
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.policies.learned import Learned, Peek
from adaperceiver_jax.tasks.make import make_model, run_config
from adaperceiver_jax.tasks.policy import policy_grid, policy_network
from adaperceiver_jax.train.checkpoints import EMA, FOLDER, PARAMS, Checkpoints

WEIGHTS = (EMA, PARAMS)
"""Which weights of a checkpoint: their running mean, or as the optimizer left them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options by which a command line says more of `find_weights`' source."""
    parser.add_argument(
        "--model",
        help="which model a file holds: a config.json, a folder or hub id with one, a timm name "
        "(from its tensors, as far as they tell)",
    )
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument("--weights", choices=WEIGHTS, help=f"which of a run ({EMA})")
    parser.add_argument("--step", type=int, help="of a run's checkpoint (the newest that is whole)")


def find_by_arguments(source: str, options: argparse.Namespace) -> Pretrained:
    """`find_weights` with the options of `add_arguments`."""
    names = ("model", "revision", "weights", "step")
    return find_weights(source, **{name: getattr(options, name) for name in names})


def find_weights(
    source: str | os.PathLike,
    *,
    model: str | os.PathLike | None = None,
    revision: str | None = None,
    weights: str | None = None,
    step: int | None = None,
) -> Pretrained:
    """A model and its weights, from wherever they are.

    Args:
      source: a run's folder, a folder with a config.json, a hub id, a timm name, or a .safetensors,
        .pth or .pt file.
      model: which model a file holds, where its tensors do not tell: what `find_model` takes.
      revision: of a hub id.
      weights, step: of a run, as `find_run` takes them.
    """
    path = Path(source)
    is_run, is_file = (path / FOLDER).is_dir(), path.is_file()
    for name, value, fits, what in (
        ("model", model, is_file, "a file of weights"),
        ("weights", weights, is_run, "a run's folder"),
        ("step", step, is_run, "a run's folder"),
        ("revision", revision, not path.exists() or model is not None, "a hub id"),
    ):
        if value is not None and not fits:
            raise ValueError(f"{name}={value}: only for {what}, which {source} is not")
    if is_run:
        return find_run(path, weights or EMA, step)
    if is_file:
        return find_in_file(path, None if model is None else find_model(model, revision))
    if path.suffix in (*SAFETENSORS, *PICKLED):
        raise ValueError(f"{source}: there is no such file")
    return find_pretrained(source, revision)


def find_run(workdir: str | os.PathLike, weights: str = EMA, step: int | None = None) -> Pretrained:
    """The model that a run trains, with the weights of one of its checkpoints.

    Args:
      workdir: the run's folder, with `config.json` and `checkpoints/`.
      weights: one of WEIGHTS.
      step: of the checkpoint; None is the newest that is whole.
    """
    folder = Path(workdir)
    config = run_config(folder)
    trained: Any = make_model(config)
    model = type(trained)(trained.config)  # computed as is usual, not as the run did

    def read() -> Any:
        with Checkpoints(folder) as checkpoints:
            _, params = checkpoints.restore_weights(weights, step)
        check_params(model, params)
        return params

    return Pretrained(model, read)


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
    config = run_config(run)
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
