"""One device unless a test asks for more."""

import jax
import pytest


@pytest.fixture
def devices(monkeypatch):
    """Sets how many of the devices a mesh is made of."""

    def use(count: int) -> None:
        monkeypatch.setattr(jax, "device_count", lambda *_: count)

    return use


@pytest.fixture(autouse=True)
def _one_device(devices):
    devices(1)
