"""One device unless a test asks for more, and programs that several runs share compiled once."""

import jax
import pytest


@pytest.fixture(scope="session")
def compilation_cache(tmp_path_factory, worker_id) -> str:
    """A folder that all of this run's processes share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "compiled"
    folder.mkdir(exist_ok=True)
    return str(folder)


@pytest.fixture(scope="package", autouse=True)
def _compile_once(compilation_cache):
    keys = {
        "jax_compilation_cache_dir": compilation_cache,
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_disable_most_optimizations": True,  # compiling takes longer than running
    }
    before = {key: jax.config.values[key] for key in keys}
    for key, value in keys.items():
        jax.config.update(key, value)
    yield
    for key, value in before.items():
        jax.config.update(key, value)


@pytest.fixture
def devices(monkeypatch):
    """Sets how many of the devices a mesh is made of."""

    def use(count: int) -> None:
        monkeypatch.setattr(jax, "device_count", lambda *_: count)

    return use


@pytest.fixture(autouse=True)
def _one_device(devices):
    devices(1)
