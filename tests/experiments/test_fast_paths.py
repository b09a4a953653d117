"""Other ways to compute the forward give the same."""

import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate import machine
from adaperceiver_jax.models import ffn
from adaperceiver_jax.models.platform import traced_for
from adaperceiver_jax.train.sharding import make_mesh
from configs import scratch
from experiments.axes import run as axes
from experiments.fast_paths import run, step, tpu, variants
from tests.small_models import TINY, model_and_params, random_images

CLOSE = dict(rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("way", ["listed", "fused"])
def test_the_blocks_otherwise(way):
    model, params = model_and_params(0, **TINY)
    images = random_images(model.config)
    want = variants.as_users_call_it(model, 4)(params, images)
    if way == "listed":
        got = variants.of_listed_blocks(model, 4)(variants.listed(params), images)
    else:
        got = variants.with_fused_qkv(model, 4)(variants.fused(params), images)
        changed = variants.fused(params)
        kernel = changed["blocks"]["attn"]["qkv"]["kernel"]
        changed["blocks"]["attn"]["qkv"]["kernel"] = kernel + 0.5
        other = variants.with_fused_qkv(model, 4)(changed, images)
        assert np.abs(other - want).max() > 1e-3  # these are the weights it uses
    np.testing.assert_allclose(got, want, **CLOSE)


def test_an_ffn_filled_up_with_zeros():
    model, params = model_and_params(0, **TINY)
    ffn = jax.tree.map(lambda p: p[0], params["blocks"]["ffn"])
    x = jax.random.normal(jax.random.key(1), (2, 4, model.config.embed_dim))
    ways = variants.ffns(model.config, 8, jnp.float32, ffn)
    hidden = model.config.hidden_units(8)
    assert list(ways)[:2] == ["cut in the call", f"a copy of {hidden}"]
    first, *others = [call(own, x) for call, own in ways.values()]
    for other in others:
        np.testing.assert_allclose(first, other, **CLOSE)


def test_a_kernels_gradient_otherwise():
    x, kernel, grad = (
        jax.random.normal(jax.random.key(n), shape)
        for n, shape in enumerate(((2, 3, 5), (5, 7), (2, 3, 7)))
    )
    want = np.einsum("abm,abn->mn", x, grad)
    for way in (variants.kernel_gradient, variants.kernel_gradient_over_two_axes):
        np.testing.assert_allclose(way(x, kernel, grad), want, **CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("kind", run.KINDS)
def test_every_kind_of_way_runs(kind):
    config = ap.AdaPerceiverConfig(**TINY)
    ways = run.programs(kind, config, jnp.float32, 2, 4)
    assert len(ways) > 1
    for way in ways.values():
        assert np.isfinite(jax.tree.leaves(way.call())[0]).all()


def test_the_ways_of_a_step_differ_as_their_names_say():
    usual = step.config_of(4, "float32")
    assert (usual.batch_size, usual.optimizer.name) == (4, "adamw")
    for way in step.WAYS:
        argument = step.argument_of(way, usual.model.depth)
        compute = step.config_of(4, "float32", argument).compute
        assert (usual.compute.unroll, usual.compute.remat) == (1, True)
        rounds = {"three": 3, "written": usual.model.depth}.get(way, 1)
        assert (compute.unroll, compute.remat) == (rounds, way != "kept")


def test_one_way_of_a_step_masks_what_the_others_skip(monkeypatch):
    def on_one_cpu(config):
        with traced_for(make_mesh(config.mesh, jax.devices()[:1])):
            return ffn.on_one_cpu()

    monkeypatch.setattr(step, "step_program", on_one_cpu)
    for way in step.WAYS:
        assert step.program_of(4, "float32", way, 21) is (way != step.MASKED)


@pytest.mark.slow
def test_the_ways_of_a_step_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    whole = scratch.get_config
    monkeypatch.setattr(scratch, "get_config", lambda argument: whole(f"runlocal,{argument}"))
    monkeypatch.setattr(machine, "measure_ceiling", lambda dtype: machine.Ceiling(1e9, 1e9))
    step.main(["--batch", "8", "--repeats", "1", "--only", "written", "masked"])
    *_, default, written, again, masked = capsys.readouterr().out.splitlines()
    assert default.startswith("a loop ")
    assert again.startswith("a loop ")
    for line, name in ((written, "written out "), (masked, "a loop, widths masked ")):
        assert line.startswith(name)
        assert float(line.split()[-1]) > 0


def test_the_axes_of_the_papers_model():
    assert axes.smaller(ap.AdaPerceiverConfig()) == {
        "whole": (256, 832, 21),
        "tokens 256 to 64": (64, 832, 21),
        "width 832 to 416": (256, 416, 21),
        "depth 21 to 7": (256, 832, 7),
    }


@pytest.mark.parametrize(("part", "status"), [(4.4, 0), (4.5, 1)])
def test_an_axis_is_held_where_time_falls_by_enough_of_what_flops_promise(
    part, status, monkeypatch, capsys
):
    """The whole takes 8 seconds and twice the FLOPs of any part."""
    clock = [0.0]

    def program(model, params, images, sub_network):
        whole = sub_network == (256, 832, 21)

        def call():
            clock[0] += 8.0 if whole else part

        return types.SimpleNamespace(call=call, flops=4.0 if whole else 2.0, least_bytes=0.0)

    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(machine, "measure_ceiling", lambda dtype: machine.Ceiling(1.0, 1.0))
    monkeypatch.setattr(ap, "init_params", lambda *_: {})
    monkeypatch.setattr(axes, "forward_program", program)
    assert axes.main(["--batch", "1", "--repeats", "2"]) == status
    *rows, _, verdict = capsys.readouterr().out.splitlines()
    assert rows[-1].split()[5:9] == ["8000.0", "4000.0", f"{1e3 * part:.1f}", "2000.0"]
    assert rows[-1].split()[-1] == f"{4 / part:.0%}"
    assert verdict.split(":")[0] == ("MISSED" if status else "Held")


def test_splash_leaves_out_the_one_block_of_four_that_is_masked_whole():
    config = ap.AdaPerceiverConfig()
    assert tpu.splash_flops(config) == 9 * 2 * 3 * 128**3 * 13
    assert tpu.splash_flops(config.replace(block_mask="none")) == 9 * 2 * 4 * 128**3 * 13
