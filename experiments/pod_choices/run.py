"""What a training step's choices cost on a pod, by the TPU's compiler: FLOPs, traffic, memory.

python -m experiments.pod_choices.run                         # all
python -m experiments.pod_choices.run --only "nothing kept"   # the choices of this name

Compiles the gradients of stage 3 (the step of configs/stage3_width.py, batch 4096) for v5e:16x16
in variants of how they are computed, which give the same numbers:

  what is computed again in the backward pass rather than kept (everything within a block, all but
  matrix products, nothing); blocks in a loop or each written out; attention cut by granularity or
  under a mask; readouts of the class token folded, or with keys and values of their own; gradients
  summed in float32 or bfloat16.

Prints a table. Needs libtpu (pip install -e '.[tpu]'), no TPU; half an hour on 2 cores.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from absl import logging

from adaperceiver_jax.models import latent_stream
from adaperceiver_jax.models.adaperceiver import AdaPerceiver
from adaperceiver_jax.models.attention import attend
from adaperceiver_jax.tasks import make
from adaperceiver_jax.tasks.config_file import read_config
from adaperceiver_jax.tasks.shapes import make_step
from tools.pod_report.program import DoesNotFitError, Program, compile_program
from tools.pod_report.topology import GIB, find_topology, layout

TOPOLOGY = "v5e:16x16"


class PlainReadouts(AdaPerceiver):
    """Reads the class token out with keys and values of every latent, as features are."""

    def fold(self, rope: Any) -> Any:
        """Nothing is folded: the positions, for `write_logits`."""
        return rope

    def write_logits(
        self, z: jax.Array, folded: Any, visible: jax.Array | None = None, train: bool = False
    ) -> jax.Array:
        """Latents (..., N, D), visible (..., R, N) -> logits (..., R, classes)."""
        if visible is None:  # while parameters are made
            return super().write_logits(z, super().fold(folded), visible, train)
        head, token = self.write_head, self._class_token()
        keys, values = head.keys_values(z, folded)
        batch = z.shape[-3]
        query = head.queries(jnp.broadcast_to(token, (batch, 1, len(token))))  # (B, 1, H, d)
        if z.ndim == 4:  # every depth, one readout each
            read = head.read_each(query, keys, values, visible[:, 0, 0], train)
        else:
            queries = jnp.broadcast_to(query, (batch, len(visible), *query.shape[2:]))
            read = attend(queries, keys, values, visible[None, None])
        return self.output_adapter(token + head.cattn.project(read, train), train)


@dataclasses.dataclass(frozen=True)
class Variant:
    """How a step is computed."""

    name: str
    argument: str
    """Of the config."""
    keeps_nothing: bool = False
    plain: bool = False


VARIANTS = (
    Variant("products kept (the default)", "compute.remat=True"),
    Variant("all kept", "compute.remat=False"),
    Variant("nothing kept", "compute.remat=True", keeps_nothing=True),
    Variant("masked", "compute.remat=True,compute.attention=masked"),
    Variant("plain readouts", "compute.remat=True", plain=True),
    Variant("gradients in bfloat16", "compute.remat=True,mesh.gradients=bfloat16"),
    Variant("three blocks a round", "compute.remat=True,compute.unroll=3"),
    Variant("no loop", "compute.remat=True,compute.unroll=21"),
)


@contextlib.contextmanager
def computed_as(variant: Variant) -> Iterator[None]:
    """What no config can say: for comparison only."""
    with contextlib.ExitStack() as stack:
        if variant.keeps_nothing:
            stack.enter_context(mock.patch.object(latent_stream, "KEEP_PRODUCTS", None))
        if variant.plain:
            stack.enter_context(mock.patch.object(make, "AdaPerceiver", PlainReadouts))
        yield


def compiled(variant: Variant) -> Program:
    """The gradients' program."""
    topology = find_topology(TOPOLOGY)
    with computed_as(variant):
        config = read_config(f"configs/stage3_width.py:{variant.argument}")
        step = make_step(config, topology.devices)
        return compile_program(
            variant.name,
            step.programs.gradients,
            step.gradients,
            "opt_state",
            layout(step.programs.mesh),
            topology.chip,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [variant.name for variant in VARIANTS]
    parser.add_argument("--only", nargs="*", choices=names, help="of these alone")
    options = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")
    logging.set_verbosity(logging.ERROR)
    print(
        "| gradients of stage 3 on v5e:16x16 | TFLOPs a chip | with tiles and passes | "
        "HBM traffic, GB | temporaries, GiB | sent, MB | reckoned, ms | compiled in, s |\n"
        "|---|---|---|---|---|---|---|---|",
        flush=True,
    )
    for variant in VARIANTS:
        if options.only and variant.name not in options.only:
            continue
        print(f"[{time.strftime('%H:%M:%S')}] {variant.name}", file=sys.stderr, flush=True)
        try:
            p = compiled(variant)
        except DoesNotFitError as error:
            print(f"| {variant.name} | {error} | | | | | | |", flush=True)
            continue
        sent = sum(s.bytes for s in p.sent)
        print(
            f"| {variant.name} | {p.work.flops / 1e12:.2f} | {p.work.passes / 1e12:.2f} | "
            f"{p.work.hbm / 1e9:.1f} | {p.memory.temporaries / GIB:.2f} | {sent / 1e6:,.0f} | "
            f"{1e3 * p.work.seconds:.1f} | {p.seconds:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
