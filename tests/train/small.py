"""Runs of seconds: the configs' own, made smaller still."""

import importlib
from pathlib import Path

import jax
import numpy as np
import optax

from adaperceiver_jax.optim.optimizer import Optimizer
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.checkpoints import Checkpoints
from adaperceiver_jax.train.loop import Result, train
from adaperceiver_jax.train.settings import MeshSettings, from_config
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import make_programs
from configs.common import set_key

ROOT = Path(__file__).resolve().parents[2]
SMALL = {
    "length": "8 steps",
    "batch_size": 8,
    "log_every": 2,
    "data.train_count": 40,
    "data.validation_count": 12,
    "data.image_size": 16,
    "data.threads": 2,
    "model.embed_dim": 12,
    "model.num_heads": 1,
    "model.depth": 2,
    "model.max_latent_tokens": 4,
    "model.token_granularities": (2, 4),
    "model.widths": (6, 12),
    "model.image_size": 16,
    "model.patch_size": 8,
    "vit.embed_dim": 8,
    "vit.num_heads": 1,
    "vit.depth": 1,
    "vit.image_size": 16,
    "vit.patch_size": 8,
    "evaluation.batch_size": 8,
    "evaluation.every": "4 steps",
    "evaluation.sub_networks": (),
    "checkpoint.every": "2 steps",
    "optimizer.precondition_frequency": 3,
    "optimizer.start_preconditioning_step": 3,
}
"""An epoch is 5 steps, and the last validation batch is not full."""
PLAIN = {"optimizer.name": "nadamw"}
"""Compiles faster than SOAP."""


def config_dict(name: str = "scratch", changes: dict | None = None):
    """configs/NAME.py:runlocal with SMALL and `changes`."""
    config = importlib.import_module(f"configs.{name}").get_config("runlocal")
    for key, value in {**SMALL, **(changes or {})}.items():
        set_key(config, key, str(value))
    if config.task == "distill" and config.model.output_feat_dim is not None:
        config.model.output_feat_dim = config.vit.embed_dim
    return config


def run_config(name: str = "scratch", changes: dict | None = None) -> RunConfig:
    return from_config(RunConfig, config_dict(name, changes).to_dict())


def run(workdir: Path, name: str = "scratch", changes: dict | None = None) -> Result:
    config = run_config(name, changes)
    return train(config, make_task(config), workdir)


def gradient_descent(rate: float) -> Optimizer:
    """With it an error of the gradient is one of the same size in the parameters."""
    transform = optax.sgd(rate, momentum=0.9)
    return Optimizer(transform.init, lambda grads, state: state, transform.update)


def assert_same(ours, theirs) -> None:
    """Two trees of arrays, bit for bit."""
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True
    ):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(
            np.asarray(a), np.asarray(b), err_msg=jax.tree_util.keystr(path)
        )


def rows(workdir: Path) -> list[dict[str, float]]:
    """metrics.csv, without the empty fields."""
    header, *lines = (workdir / "metrics.csv").read_text().splitlines()
    names = header.split(",")
    return [
        {n: float(v) for n, v in zip(names, line.split(","), strict=True) if v} for line in lines
    ]


def saved_steps(workdir: Path) -> list[int]:
    with Checkpoints(workdir) as checkpoints:
        return checkpoints.steps()


def programs_of(task, devices, patterns=()):
    """The programs of plain gradient descent."""
    mesh = make_mesh(MeshSettings(data=devices))
    descent = gradient_descent(0.1)
    return make_programs(task, descent, mesh, seed=0, clip=1.0, ema=0.9, train_only=patterns)


def counted_flops(task, batch, patterns):
    """The shapes of what is trained, and XLA's count of a step's first program, an image."""
    programs = programs_of(task, 1, patterns)
    state = programs.state
    lowered = programs.gradients.lower(state.params, state.opt_state, state.step, {}, batch)
    return state.ema, lowered.compile().cost_analysis()["flops"] / len(batch["image"])
