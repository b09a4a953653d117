"""Several processes of jax.distributed: together they see what one sees."""

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
    TrainOrder, evaluation_batches, to_devices, train_batches
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
    assert jax.process_count() == int(count) == len(jax.devices())
    sharding = NamedSharding(jax.make_mesh((int(count),), ("data",)), PartitionSpec("data"))

    def own(x):
        return [n for shard in x.addressable_shards for n in np.asarray(shard.data).tolist()]

    train = train_batches(TrainOrder(Numbers(), 1), SIZE, 0, STEPS)
    steps = [own(batch["label"]) for batch in to_devices(train, sharding)]
    validation = to_devices(evaluation_batches(Numbers(), SIZE), sharding)
    counted = [[own(batch["label"]), own(batch["weight"])] for batch in validation]
    print(json.dumps({"steps": steps, "counted": counted}))
"""


def seen_by(count, tmp_path):
    """What each of so many processes has on its device."""
    sizes = {"IMAGES": IMAGES, "SIZE": SIZE, "STEPS": STEPS}
    text = "\n".join(f"{k} = {v}" for k, v in sizes.items()) + PROGRAM
    return said_by_processes(text, count, tmp_path, timeout=180)


@pytest.mark.slow
def test_one_two_and_four_processes_see_the_same_images_each_once_an_epoch(tmp_path):
    (alone,) = seen_by(1, tmp_path)
    order = [n for step in alone["steps"] for n in step]
    assert sorted(order[:IMAGES]) == sorted(order[IMAGES:]) == list(range(IMAGES))
    assert order[:IMAGES] != order[IMAGES:]
    for count in (2, 4):
        parts = seen_by(count, tmp_path)
        for i, step in enumerate(alone["steps"]):
            assert all(len(part["steps"][i]) == SIZE // count for part in parts)
            assert [n for part in parts for n in part["steps"][i]] == step
        counted = [
            n
            for part in parts
            for labels, weights in part["counted"]
            for n, weight in zip(labels, weights, strict=True)
            if weight
        ]
        assert sorted(counted) == list(range(IMAGES))
