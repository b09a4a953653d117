"""Softmaxes of a compiled program, and what they leave in the large memory."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from adaperceiver_jax.aot.chips import find_topology, layout
from adaperceiver_jax.aot.program import Program, compile_program
from tests.aot.test_program import read
from tests.aot.texts import entry

HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None
SOFTMAX = """\
%softmax (s: f32[64,256,256]) -> (f32[64,256,256], f32[64,256]) {
  %s = f32[64,256,256]{2,1,0} parameter(0)
  %e = f32[64,256,256]{2,1,0} exponential(%s), metadata={op_name="attn/exp"}
  %z = f32[] constant(0)
  %r = f32[64,256]{1,0} reduce(%e, %z), dimensions={2}, to_apply=%add
  ROOT %t = (f32[64,256,256]{2,1,0}, f32[64,256]{1,0}) tuple(%e, %r)
}
"""


def softmax(space: str) -> Program:
    scores = f"f32[64,256,256]{{2,1,0{space}}}"
    return read(
        entry(
            f"%x = {scores} parameter(0)",
            f"%y = ({scores}, f32[64,256]{{1,0}}) fusion(%x), kind=kLoop, calls=%softmax",
            before=SOFTMAX,
        )
    )


def test_scores_in_the_large_memory_are_named():
    spilled = softmax("")
    assert spilled.softmaxes == 1
    (scores,) = spilled.spilled
    assert (scores.dims, scores.op_name) == ((64, 256, 256), "attn/exp")
    assert scores.bytes == 2 * 4 * 64 * 256 * 256
    assert softmax(":S(1)").softmaxes == 1
    assert softmax(":S(1)").spilled == ()


def test_an_exponential_that_nothing_sums_is_no_softmax():
    text = SOFTMAX.replace("reduce(%e, %z)", "reduce(%s, %z)")
    module = entry(
        "%x = f32[64,256,256]{2,1,0} parameter(0)",
        "%y = (f32[64,256,256]{2,1,0}, f32[64,256]{1,0}) fusion(%x), kind=kLoop, calls=%softmax",
        before=text,
    )
    assert read(module).softmaxes == 0


SCORES = "f32[64,256,256]{2,1,0}"
SUMMED = f"""\
%summed (u: f32[64,256,256], k: f32[64,256,256]) -> f32[64,256] {{
  %u = {SCORES} parameter(0)
  %k = {SCORES} parameter(1)
  %z = f32[] constant(0)
  ROOT %r = f32[64,256]{{1,0}} reduce(%u, %z), dimensions={{2}}, to_apply=%add
}}
"""
ALONE = f"""\
%alone (s: f32[64,256,256]) -> f32[64,256,256] {{
  %s = {SCORES} parameter(0)
  ROOT %e = {SCORES} exponential(%s), metadata={{op_name="attn/exp"}}
}}

"""


def apart(summed: str = SUMMED, kept: str = SCORES) -> Program:
    """The exponential in a fusion of its own, the sum in a later one."""
    return read(
        entry(
            f"%x = {SCORES} parameter(0)",
            f"%y = {kept} fusion(%x), kind=kLoop, calls=%alone",
            f"%c = {kept} copy(%y)",
            "%z = f32[64,256]{1,0} fusion(%c, %x), kind=kLoop, calls=%summed",
            before=ALONE + summed,
        )
    )


def test_an_exponential_alone_is_one_whose_scores_spill():
    (scores,) = apart().spilled
    assert apart().softmaxes == 1
    assert (scores.dims, scores.op_name) == ((64, 256, 256), "attn/exp")
    assert scores.bytes == 2 * 4 * 64 * 256 * 256


@pytest.mark.parametrize(
    ("between", "count"),
    [
        (("%c = pred[64,256,256]{2,1,0} compare(%k, %k), direction=GT", "select(%c, %u, %k)"), 1),
        (
            (
                "%c = pred[64,256,256]{2,1,0} compare(%k, %k), direction=GT",
                f"%m = {SCORES} convert(%c)",
                "multiply(%u, %m)",
            ),
            1,
        ),
        (("multiply(%u, %k)",), 0),  # a mean of something else under the softmax
        (("add(%u, %k)",), 0),
    ],
)
def test_a_mask_before_the_sum_hides_none(between, count):
    lines = "\n".join(f"  {line}" for line in (*between[:-1], f"%b = {SCORES} {between[-1]}"))
    z = "  %z = f32[] constant(0)"
    text = SUMMED.replace(z, f"{lines}\n{z}").replace("reduce(%u", "reduce(%b")
    assert apart(text).softmaxes == count
    assert len(apart(text).spilled) == count


@pytest.mark.slow
@pytest.mark.skipif(not HAS_LIBTPU, reason="needs libtpu")
def test_attention_that_a_tpu_cannot_fuse_is_found_and_its_own_kernel_named():
    topology = find_topology("v5e:2x2")
    mesh = Mesh(np.array(topology.devices).reshape(4, 1), ("data", "fsdp"))
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
    # What is fused is a kernel of which the text says nothing.
    [kernel] = compiled(fused=True).opaque
    assert "tpu_custom_call" in kernel
