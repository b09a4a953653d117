"""Several processes of jax.distributed: together they see what one sees."""

import itertools

import pytest

from tests.processes import said_by_processes

IMAGES, SIZE, STEPS = 30, 12, 5  # two epochs
PROGRAM = """
import json
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adaperceiver_jax.data.pipeline import (
    TrainOrder, evaluation_batches, own_places, to_devices, train_batches
)


class Numbers:
    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return {"label": np.asarray(index)}


if __name__ == "__main__":
    place, count, index = sys.argv[1:]
    if int(count) > 1:
        jax.distributed.initialize(f"localhost:{place}", int(count), int(index))
    assert jax.process_count() == int(count)
    # As on a pod's torus, where a process's devices are no neighbours.
    devices = sorted(jax.devices(), key=lambda d: (d.id % jax.local_device_count(), d.id))
    mesh = jax.make_mesh((len(devices),), ("data",), devices=devices)
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    places = own_places(sharding, SIZE)

    def own(x):
        return [
            (shard.index[0].start or 0, np.asarray(shard.data).tolist())
            for shard in x.addressable_shards
        ]

    train = train_batches(TrainOrder(Numbers(), 1), SIZE, 0, STEPS, places=places)
    steps = [own(batch["label"]) for batch in to_devices(train, sharding)]
    validation = to_devices(evaluation_batches(Numbers(), SIZE, places=places), sharding)
    counted = [[own(batch["label"]), own(batch["weight"])] for batch in validation]
    print(json.dumps({"steps": steps, "counted": counted}))
"""


def seen_by(count, devices, tmp_path):
    """What each of so many processes has on its devices."""
    sizes = {"IMAGES": IMAGES, "SIZE": SIZE, "STEPS": STEPS}
    text = "\n".join(f"{k} = {v}" for k, v in sizes.items()) + PROGRAM
    return said_by_processes(text, count, tmp_path, timeout=180, devices=devices)


def whole(parts):
    """A batch, from (place, samples) of all devices."""
    return [n for _, part in sorted(itertools.chain(*parts)) for n in part]


@pytest.mark.nightly(group="processes")
def test_one_two_and_four_processes_see_the_same_images_each_once_an_epoch(tmp_path):
    (alone,) = seen_by(1, 1, tmp_path)
    steps = [whole([step]) for step in alone["steps"]]
    order = list(itertools.chain(*steps))
    assert sorted(order[:IMAGES]) == sorted(order[IMAGES:]) == list(range(IMAGES))
    assert order[:IMAGES] != order[IMAGES:]
    for count, devices in ((4, 1), (2, 2)):
        parts = seen_by(count, devices, tmp_path)
        for i, step in enumerate(steps):
            for part in parts:
                assert sum(len(n) for _, n in part["steps"][i]) == SIZE // count
            assert whole(part["steps"][i] for part in parts) == step
        counted = []
        for batch in zip(*(part["counted"] for part in parts), strict=True):
            labels, weights = (whole(kind) for kind in zip(*batch, strict=True))
            counted += [n for n, weight in zip(labels, weights, strict=True) if weight]
        assert counted == list(range(IMAGES))
