"""What a step gives its task: its number, and keys that are its own."""

import jax
import jax.numpy as jnp
import numpy as np

from adaperceiver_jax.train.settings import MeshSettings
from adaperceiver_jax.train.sharding import make_mesh
from adaperceiver_jax.train.step import make_programs
from tests.train.small import gradient_descent


class Telling:
    """A task of one parameter, whose metrics are what it was given."""

    def init_params(self, key):
        return {"x": jax.random.normal(key)}

    def memory(self):
        return {}

    def draw(self, batch, key, step):
        return batch, {"step": step, "drawn": jax.random.uniform(key)}

    def loss(self, params, constants, samples, shared, key):
        noise = jax.random.uniform(key)
        told = {name: jnp.float32(value) for name, value in shared.items()}
        return params["x"] * noise, {**told, "noise": noise, "square": noise**2}


def told(step: int, seed: int = 0, accumulate: int = 1) -> dict[str, float]:
    optimizer, mesh = gradient_descent(0.1), make_mesh(MeshSettings())
    programs = make_programs(
        Telling(), optimizer, mesh, seed=seed, clip=1.0, ema=0.9, accumulate=accumulate
    )
    state = programs.init(jax.random.key(0)).replace(step=jnp.int32(step))
    _, metrics = programs.update(state, {}, {"image": np.zeros((4, 1), np.float32)}, step + 1)
    return {name: float(value) for name, value in metrics.items()}


def test_steps_seeds_and_parts_have_keys_of_their_own():
    first, cut = told(0), told(0, accumulate=2)
    assert first == told(0)
    for other in (told(3), told(0, seed=1)):
        assert first["drawn"] != other["drawn"]
        assert first["noise"] != other["noise"]
    assert first["drawn"] != first["noise"]
    assert (first["step"], told(3)["step"]) == (0, 3)
    # What is drawn is drawn for the whole batch; each part has noise of its own.
    assert cut["drawn"] == first["drawn"]
    assert cut["square"] - cut["noise"] ** 2 > 1e-4
