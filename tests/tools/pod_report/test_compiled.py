"""Programs of today's compilers, read and counted."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tests.tools.pod_report.test_program import read
from tools.pod_report.hlo import parse
from tools.pod_report.loops import visits
from tools.pod_report.matmuls import product
from tools.pod_report.program import Program, compile_program
from tools.pod_report.topology import find_topology, layout

pytestmark = [pytest.mark.optimised, pytest.mark.nightly(group="pods")]
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="no libtpu")


def test_loops_of_loops_multiply_and_those_that_wait_for_data_are_marked():
    def f(x):
        def inner(y, _):
            return jnp.sin(y) @ y, None

        def outer(y, _):
            return jax.lax.scan(inner, y, None, length=5)[0], None

        y = jax.lax.scan(outer, x, None, length=3)[0]
        return jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: y + 1, y)

    run = list(visits(parse(jax.jit(f).lower(jnp.ones((4, 4))).compile().as_text())))
    assert max(visit.times for visit in run) == 15
    assert sum(visit.endless for visit in run) == 1


def test_flops_are_those_that_xla_counts_where_there_is_no_loop():
    def f(x, w):
        y = jax.nn.relu(x @ w)
        return (jnp.einsum("bnd,bmd->bnm", y, y) ** 2).sum()

    compiled = jax.jit(jax.grad(f)).lower(jnp.ones((2, 16, 32)), jnp.ones((32, 24))).compile()
    module = parse(compiled.as_text())
    products = [product(*part) for visit in visits(module) for part in visit.parts(module)]
    total = sum(p.flops for p in products if p)
    assert total == 2 * 2 * 16 * (32 * 24 * 2 + 16 * 24 * 3)
    # The other operations that XLA counts are element-wise.
    assert compiled.cost_analysis()["flops"] == pytest.approx(total, rel=0.1)


@pytest.fixture
def uncached():
    """Compiles anew: a TPU's program cannot be read from the cache without a TPU."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    yield
    jax.config.update("jax_enable_compilation_cache", before)


@needs_libtpu
def test_products_that_a_tpu_sums_around_its_chips_are_reduced_once(uncached):
    """A gradient of columns dealt to 8 chips: the weights go around, and the gradient's parts."""
    mesh = jax.sharding.Mesh(np.array(find_topology("v5e:4x2").devices), ("fsdp",))

    def shape(rows, columns, *axes):
        place = NamedSharding(mesh, P(*axes))
        return jax.ShapeDtypeStruct((rows, columns), jnp.bfloat16, sharding=place)

    weights = shape(4096, 4096, None, "fsdp")
    step = jax.jit(
        jax.grad(lambda w, x: jnp.sum((x @ w).astype(jnp.float32) ** 2)),
        out_shardings=weights.sharding,
    )
    text = step.lower(weights, shape(32768, 4096, "fsdp")).compile().as_text()
    sent = read(text, layout(mesh)).sent
    reduced = [c for c in sent if c.reduces]
    assert {c.kind for c in reduced} == {"collective-permute"}
    assert sum(c.times * c.numbers for c in reduced) == pytest.approx(4096**2)
    moved = sum(c.times * c.numbers for c in sent if not c.reduces)
    assert moved == pytest.approx(4096**2 * 9 / 8)


@needs_libtpu
def test_attention_that_a_tpu_cannot_fuse_is_found_and_its_own_kernel_named(uncached):
    topology = find_topology("v5e:2x2")
    mesh = jax.sharding.Mesh(np.array(topology.devices).reshape(4, 1), ("data", "fsdp"))
    place = NamedSharding(mesh, P(("data", "fsdp")))
    x = jax.ShapeDtypeStruct((64, 2048, 64), jnp.bfloat16, sharding=place)

    def attend(state, q, k, v, fused):
        scores = jnp.einsum("bqd,bkd->bqk", q, k).astype(jnp.float32)
        weights = jnp.exp(scores - scores.max(-1, keepdims=True))
        if not fused:
            weights = jax.lax.optimization_barrier(weights)
        weights /= weights.sum(-1, keepdims=True)
        return jnp.einsum("bqk,bkd->bqd", weights.astype(jnp.bfloat16), v) + state

    def compiled(fused: bool) -> Program:
        program = jax.jit(functools.partial(attend, fused=fused), donate_argnums=0)
        return compile_program("attend", program, (x,) * 4, "state", layout(mesh), topology.chip)

    apart = compiled(fused=False)
    assert (apart.softmaxes, len(apart.spilled)) == (1, 1)
    assert apart.spilled[0].dims == (16, 2048, 2048)
    assert apart.opaque == ()
    [kernel] = compiled(fused=True).opaque  # the text says nothing else of a fused one
    assert "tpu_custom_call" in kernel
