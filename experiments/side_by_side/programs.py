"""Our forward and stage 3 training step, and PyTorch's, as calls that can be timed in turn."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.convert.describe import config_to_dict
from adaperceiver_jax.losses.distillation import distillation_kl
from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.tasks.make import RunConfig, make_model
from adaperceiver_jax.tasks.once_for_all import OnceForAll, Targets
from adaperceiver_jax.train.settings import from_config
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import make_programs
from configs import stage3_width
from tools.speed import most_flops, size_of

try:
    import torch

    from adaperceiver_jax.convert.torch_twin import AdaPerceiver as Twin
    from adaperceiver_jax.convert.torch_twin import twin
    from experiments.side_by_side.torch_step import Stage3
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise SystemExit("This is measured beside PyTorch: pip install -e '.[torch]'") from error

PYTORCH = torch.__version__
OURS, EAGER, MASKED, COMPILED = "ours", "PyTorch", "PyTorch, masked", "PyTorch, compiled"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclasses.dataclass(frozen=True)
class SideBySide:
    """The same work by several programs."""

    calls: dict[str, Callable[[], Any]]
    """Calls that compute and wait for the result."""
    flops: float
    """FLOPs of our call's matrix products, a multiply-add as 2."""
    least_bytes: float
    """Bytes that our call must read or write."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenLogits(OnceForAll):
    """Distillation from logits that are given, instead of a teacher."""

    def targets(self, constants: Any, samples: Any) -> Targets:
        return Targets(labels=constants["logits"])

    def logit_loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        return distillation_kl(logits, labels)

    def draw_widths(self, key: jax.Array, count: int) -> jax.Array:
        return jnp.array(balanced_widths(self.model.config.widths, count))


def balanced_widths(widths: Sequence[int], count: int) -> list[int]:
    """A width per sample, all of them equally often, the middle one for those that are left over:
    a step's FLOPs are those at the mean of the widths."""
    middle = sorted(widths)[len(widths) // 2]
    return [*widths] * (count // len(widths)) + [middle] * (count % len(widths))


def stage3(argument: str = "", dtype: str = "float32") -> RunConfig:
    """configs/stage3_width.py with these keys (key=value,...), computed in this dtype."""
    text = f"compute.dtype={dtype},init_from='',evaluation.sub_networks=()"
    chosen = stage3_width.get_config(f"{text},{argument}" if argument else text)
    return from_config(RunConfig, chosen.to_dict())


def use_the_same_device() -> None:
    """Has PyTorch compute where JAX does."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # a GPU's memory is for both
    device = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("JAX has a GPU, PyTorch none: install a PyTorch that is built for CUDA")
    if device not in ("cuda", "cpu"):
        raise SystemExit(f"JAX computes on {device}: PyTorch can be timed on a CPU or a GPU only")
    torch.set_default_device(device)
    if device == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, as JAX multiplies by default


def torch_products(dtype: str) -> float:
    """The FLOP/s that PyTorch reaches in products of large matrices."""

    def squares(side: int) -> Callable[[], Any]:
        factors = torch.randn(2, side, side, dtype=DTYPES[dtype])
        return waited_for(lambda: torch.mm(*factors))

    return most_flops(squares)


def forget_compiled() -> None:
    """Nothing is left of what torch.compile compiled: it counts all programs of one function
    together, and past eight would go on without compiling. Now it would raise."""
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    torch.compiler.reset()


def torch_model(model: ap.AdaPerceiver, params: Any, mask: bool = True) -> Twin:
    """The same model in PyTorch, with these weights."""
    config = {**config_to_dict(model), **({} if mask else {"block_mask": "none"})}
    made = twin(config)
    state = {k: torch.tensor(np.array(v)) for k, v in ap.params_to_torch(model, params).items()}
    made.load_state_dict(state, strict=True)
    return made


def waited_for(call: Callable[[], Any]) -> Callable[[], Any]:
    """A call of PyTorch's that does not return before its result is there."""

    def wait() -> Any:
        result = call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return result

    return wait


def forwards(
    model: ap.AdaPerceiver,
    params: Any,
    batch: int,
    tokens: int,
    masked: bool = False,
    compiled: bool = False,
) -> SideBySide:
    """Calls of one sub-network; each gives its logits (B, classes)."""
    c = model.config
    shape = (batch, c.image_size, c.image_size, c.in_channels)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    ours = jax.jit(lambda params, x: model.apply({"params": params}, x, num_tokens=tokens).logits)
    on_device, nchw = jnp.asarray(images), torch.tensor(images.transpose(0, 3, 1, 2).copy())
    dtype = DTYPES[jnp.dtype(model.dtype).name]

    def theirs(network: Any) -> Callable[[], Any]:
        @waited_for
        def call() -> Any:
            with torch.inference_mode(), autocast(dtype):
                return network(nchw, num_tokens=tokens)["logits"]

        return call

    free = torch_model(model, params, mask=False)
    calls = {
        OURS: lambda: jax.block_until_ready(ours(params, on_device)),
        EAGER: theirs(free),
    }
    if masked:
        calls[MASKED] = theirs(torch_model(model, params))
    if compiled:
        forget_compiled()
        calls[COMPILED] = theirs(torch.compile(free, dynamic=False))
    flops = ap.flops(c, tokens, batch_size=batch).total * batch
    return SideBySide(calls, flops, size_of(params) + size_of(on_device))


def autocast(dtype: torch.dtype) -> Any:
    """Matrix products in this dtype, norms and softmax in float32."""
    device = torch.get_default_device().type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def steps(config: RunConfig, params: Any, batch_size: int, compiled: bool = False) -> SideBySide:
    """Training steps, each of which gives its loss; of images as they come, without mixup."""
    model: Any = make_model(config)
    c = model.config
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    settings = dict(weight_decay=config.optimizer.weight_decay, mesh=mesh)
    chosen = make_optimizer("adamw", lambda count: config.optimizer.lr, **settings)
    task = GivenLogits(model=model, settings=config.loss, images=config.images)
    programs = make_programs(
        task, chosen, mesh, seed=config.seed, clip=config.optimizer.clip, ema=config.ema
    )
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (batch_size, c.image_size, c.image_size, 3), dtype=np.uint8)
    logits = rng.normal(size=(batch_size, c.num_classes)).astype(np.float32)
    batch = {"image": jnp.asarray(pixels), "label": jnp.zeros(batch_size, jnp.int32)}
    constants = {"logits": jnp.asarray(logits)}
    state = [programs.begin(jax.tree.map(jnp.copy, params))]  # what a step takes, it uses up
    number = [0]

    def ours() -> float:
        number[0] += 1
        state[0], metrics = programs.update(state[0], constants, batch, number[0])
        return float(jax.block_until_ready((state[0], metrics))[1]["loss"])

    given = torch.tensor(pixels), torch.tensor(logits)

    def theirs(compiled: bool) -> Callable[[], float]:
        step = Stage3(
            torch_model(model, params),
            config.images.mean,
            config.images.std,
            lr=config.optimizer.lr,
            weight_decay=config.optimizer.weight_decay,
            clip=config.optimizer.clip,
            ema=config.ema,
            autocast=autocast(DTYPES[config.compute.dtype]),
            compiled=compiled,
        )

        @waited_for
        def call() -> float:
            widths = balanced_widths(c.widths, batch_size)
            readout_tokens = rng.choice(c.token_granularities, c.depth).tolist()
            return step.update(*given, widths, readout_tokens)

        return call

    calls = {OURS: ours, EAGER: theirs(compiled=False)}
    if compiled:
        forget_compiled()
        calls[COMPILED] = theirs(compiled=True)
    least_bytes = 2 * size_of(state[0]) + size_of(batch) + size_of(constants)
    return SideBySide(calls, task.train_flops(params) * batch_size, least_bytes)
