"""The paper's teacher, ViT-H/14 at full size, as a run on eight devices holds and asks it.

python -m experiments.full_size_teacher.run        # some 3 minutes on 2 cores, 10 GB, 3 GB of disk

Made-up weights are written as timm publishes them, and named in config.teacher.path of
configs/stage3_width.py; from there on everything is what `main.py` does, on eight devices made of
this machine's cores, config.mesh.fsdp=8. Prints what the weights take in all and on one device, the
largest array that the compiled forward gathers, and how far its targets are from those of the same
weights in float32 on one device. Exits with 1 if a device holds more than an eighth and 1%, or if
an array larger than one block's weights is gathered.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import argparse
import json
import math
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import adaperceiver_jax as ap
from adaperceiver_jax.tasks.distill import Distill
from adaperceiver_jax.tasks.make import RunConfig, make_task
from adaperceiver_jax.train.settings import from_config
from adaperceiver_jax.train.sharding import batch_sharding, make_mesh, tree_shardings
from configs import stage3_width

NAME = "vit_huge_patch14_clip_224.laion2b_ft_in12k"
DEVICES, BATCH = 8, 8
BYTES = {"f32": 4, "bf16": 2}


def made_up(config: ap.ViTConfig) -> Any:
    """Weights that make every layer matter, as NumPy."""
    rng = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        noise = rng.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return noise / np.float32(math.sqrt(math.prod(leaf.shape[-4:-1][-3:] or (1,)) or 1))
        return 1 + 0.2 * noise if path[-1].key == "scale" else 0.2 * noise

    return jax.tree_util.tree_map_with_path(draw, ap.param_shapes(ap.ViT(config)))


def gathered(program: str) -> int:
    """Bytes of the largest array that the compiled program collects from all devices."""
    found = re.findall(r"= (f32|bf16)\[([\d,]*)\]\S* all-gather", program)
    sizes = [BYTES[kind] * math.prod(map(int, shape.split(","))) for kind, shape in found]
    return max(sizes, default=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints what it found."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args(arguments)
    known = ap.timm_model(NAME)
    with tempfile.TemporaryDirectory() as folder:
        ap.save_pretrained(ap.ViT(known.config), made_up(known.config), folder)
        about = {"architecture": NAME.partition(".")[0], "num_classes": known.config.num_classes}
        (Path(folder) / "config.json").write_text(json.dumps(about))
        config = stage3_width.get_config()
        config.teacher.path = folder
        config.mesh.update(data=1, fsdp=DEVICES)
        settings = from_config(RunConfig, config.to_dict())
        task = make_task(settings)
        assert isinstance(task, Distill)
        mesh = make_mesh(settings.mesh)
        constants = task.constants()
        constants = jax.device_put(constants, tree_shardings(constants, mesh))
        whole = task.teacher_params()
    leaves = jax.tree.leaves(constants)
    total = sum(leaf.nbytes for leaf in leaves)
    held = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    block = sum(leaf.nbytes for leaf in jax.tree.leaves(constants["blocks"])) / known.config.depth
    print(f"weights: {total / 1e9:.2f} GB, {held / 1e6:.1f} MB a device of {DEVICES}")

    images = np.random.default_rng(1).standard_normal((BATCH, 224, 224, 3)).astype(np.float32)
    samples = {"images": jax.device_put(images, batch_sharding(mesh))}
    targets = jax.jit(lambda constants, samples: task.targets(constants, samples).labels)
    program = targets.lower(constants, samples).compile()
    most = gathered(program.as_text())
    print(f"largest array gathered: {most / 1e6:.1f} MB; one block holds {block / 1e6:.1f} MB")
    began = time.perf_counter()
    got = np.asarray(program(constants, samples))
    print(f"targets {got.shape} {got.dtype} in {time.perf_counter() - began:.1f} s")

    device = jax.devices()[0]
    alone = jax.jit(ap.ViT(known.config).apply)
    want = alone({"params": jax.device_put(whole, device)}, jax.device_put(images, device)).logits
    error = float(np.abs(got - want).max() / np.abs(want).max())
    print(f"against float32 on one device: {error:.1e} of the largest")
    bad = held > 1.01 * total / DEVICES or most > block or not jnp.isfinite(got).all()
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
