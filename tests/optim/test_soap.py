"""SOAP against itself on parameters cut and stacked in other ways, and against NumPy."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.extend.core import jaxprs_in_params

import adaperceiver_jax as ap
from adaperceiver_jax.optim import eigenvectors
from adaperceiver_jax.optim.optimizer import make_optimizer
from adaperceiver_jax.optim.soap import Soap, soap
from adaperceiver_jax.optim.stacks import layout_of
from tests.processes import environment

ROOT = Path(__file__).resolve().parents[2]
CLOSE = dict(rtol=0, atol=2e-5)
"""Of directions, whose entries are about 1; eigenvectors come from sums in another order."""
DEFAULTS = dict(precondition_frequency=2, start_preconditioning_step=6, max_preconditioner_dim=8)


def normal(shapes: dict, seed: int) -> dict:
    """A tree of normal numbers in the shapes given, rows of unlike sizes."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def directions(grads: list, **options) -> list:
    """What SOAP makes of these gradients, one after another (lr -1 leaves its direction)."""
    tx = soap(-1.0, **{**DEFAULTS, **options})
    state, update, found = tx.init(grads[0]), jax.jit(tx.update), []
    for grad in grads:
        updates, state = update(grad, state, grad)
        found.append(jax.tree.map(np.asarray, updates))
    return found


def series(shapes: dict, steps: int = 11) -> list:
    return [normal(shapes, seed) for seed in range(steps)]


def assert_close(ours, want) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), ours, want)


def test_a_stack_of_blocks_is_separate_parameters():
    stacked = series({"net": {"blocks": {"kernel": (3, 6, 5), "bias": (3, 5), "one": (3,)}}})

    def separate(tree):
        leaves = tree["net"]["blocks"]
        return {f"{key}{i}": x[i] for key, x in leaves.items() for i in range(3)}

    found = directions(stacked)
    want = directions([separate(tree) for tree in stacked])
    assert_close([separate(tree) for tree in found], want)
    adam = directions(stacked, start_preconditioning_step=1000)
    assert np.abs(separate(found[-1])["kernel0"] - separate(adam[-1])["kernel0"]).max() > 1e-2


def test_kernels_are_seen_as_pytorch_has_them():
    """(out, in) and (out, in, H, W), whose entries merge in another order than ours would."""
    ours = series({"conv": {"kernel": (2, 2, 2, 5)}, "blocks": {"kernel": (2, 2, 4)}})

    def to_torch(tree):
        return {
            "conv": tree["conv"]["kernel"].transpose(3, 2, 0, 1),
            "blocks": tree["blocks"]["kernel"].transpose(0, 2, 1),
        }

    found, want = directions(ours), directions([to_torch(tree) for tree in ours])
    assert_close([to_torch(tree) for tree in found], want)


def test_merging():
    flat = {(): (1,), (1, 1): (1,), (1, 7): (7,), (4, 2): (8,)}
    deep = {(3, 3): (3, 3), (2, 3, 1, 2, 2): (6, 4), (2, 9, 2): (2, 9, 2)}
    for shape, merged in (flat | deep).items():
        layout = layout_of((), shape, 8)
        assert layout.merged == merged
        x = jnp.arange(float(np.prod(shape, dtype=int))).reshape(shape)
        np.testing.assert_array_equal(layout.join(layout.cut(x)), x)


def test_large_blocks_padded_to_be_split_against_numpy():
    """1030 x 20, held as 1280 x 20, against NumPy; the eigenvectors are those of the state."""
    parts = Soap(b1=0.8, b2=0.9, start_preconditioning_step=3, max_preconditioner_dim=1030)
    grads = series({"w": (1030, 20)}, 4)
    state, b1, b2 = parts.init(grads[0]), 0.8, 0.9
    observe, precondition = jax.jit(parts.observe), jax.jit(parts.precondition)
    m = v = g2 = left = right = 0.0
    ql, qr = np.eye(1030), np.eye(20)
    for n, grad in enumerate(grads, 1):
        g = grad["w"].astype(np.float64)
        state = observe(grad, state)
        left, right = b2 * left + (1 - b2) * g @ g.T, b2 * right + (1 - b2) * g.T @ g
        for factor, want in zip(state.factors["1_of_1030x20"], (left, right), strict=True):
            size, held = len(want), {1030: 1280, 20: 20}[len(want)]
            assert factor.shape == (1, held, held)
            np.testing.assert_allclose(factor[0, :size, :size], want, rtol=0, atol=1e-4)
            assert not np.asarray(factor)[:, size:].any()
            assert not np.asarray(factor)[:, :, size:].any()
        if parts.due(n):
            state = state._replace(eigenvectors=parts.begin_refresh(state, grad).result())
            vectors = jax.device_get(state.eigenvectors["1_of_1030x20"])
            assert not vectors[0][:, 1030:].any()
            assert not vectors[0][:, :, 1030:].any()
            ql, qr = np.float64(vectors[0][0, :1030, :1030]), np.float64(vectors[1][0])
            for q, factor in ((ql, left), (qr, right)):
                np.testing.assert_allclose(q.T @ q, np.eye(len(q)), rtol=0, atol=1e-5)
                turned = q.T @ factor @ q
                assert np.abs(turned - np.diag(np.diag(turned))).max() < 1e-5 * turned.max()
                assert (np.diff(np.diag(turned)) > -1e-3).all()
        u, state = precondition(grad, state)
        m, g2 = b1 * m + (1 - b1) * g, b2 * g2 + (1 - b2) * g**2
        v = b2 * v + (1 - b2) * (ql.T @ g @ qr) ** 2
        mean = m / (1 - b1**n)
        adam = mean / (np.sqrt(g2 / (1 - b2**n)) + 1e-8)
        want = ql @ ((ql.T @ mean @ qr) / (np.sqrt(v / (1 - b2**n)) + 1e-12)) @ qr.T
        want = adam if n < 3 else want * np.linalg.norm(adam) / np.linalg.norm(want)
        np.testing.assert_allclose(u["w"], want, rtol=0, atol=1e-3)


def test_eigenvectors_change_only_when_due(monkeypatch):
    """At 6, 8 and 10 of 11 steps: two factors each, decomposed in the program or on the host."""
    calls: list[str] = []
    grads = series({"w": (6, 5)})
    on_device, on_host = jnp.linalg.eigh, np.linalg.eigh

    def in_program(x):
        jax.debug.callback(lambda: calls.append("program"))
        return on_device(x)

    monkeypatch.setattr(eigenvectors.jnp.linalg, "eigh", in_program)
    monkeypatch.setattr(
        eigenvectors.np.linalg, "eigh", lambda x: calls.append("host") or on_host(x)
    )
    plain = directions(grads)
    jax.effects_barrier()
    assert calls == ["program"] * 6

    optimizer = make_optimizer("soap", -1.0, **DEFAULTS)
    observe, apply = jax.jit(optimizer.observe), jax.jit(optimizer.apply)
    state = optimizer.init(grads[0])
    for number, (grad, want) in enumerate(zip(grads, plain, strict=True), 1):
        state = observe(grad, state)
        if optimizer.due(number):
            state = optimizer.install(state, optimizer.refresh(state, grad).result())
        updates, state = apply(grad, state, grad)
        assert_close(updates, want)
    assert calls == ["program"] * 6 + ["host"] * 6


def test_it_is_an_ordinary_optax_transformation():
    """In a chain, masked, with a schedule that counts from 0, weight decay and a scalar."""
    grads = series({"w": (6, 5), "frozen": (4,), "scale": ()}, 8)
    inner = soap(lambda count: 1.0 + count, **DEFAULTS, weight_decay=0.5)
    masked = optax.masked(inner, dict(w=True, frozen=False, scale=True))
    tx = optax.chain(optax.clip_by_global_norm(1e6), masked)
    state, update = tx.init(grads[0]), jax.jit(tx.update)
    for n, (grad, want) in enumerate(zip(grads, directions(grads), strict=True)):
        updates, state = update(grad, state, grad)
        for key in ("w", "scale"):
            expected = -(1.0 + n) * (want[key] + 0.5 * grad[key])
            np.testing.assert_allclose(updates[key], expected, rtol=0, atol=2e-5 * (1 + n))
        np.testing.assert_array_equal(updates["frozen"], grad["frozen"])
    held = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]
    assert any("'1_of_1'" in name for name in held)  # the scale
    assert not any("_of_4'" in name for name in held)  # what is frozen


def test_bfloat16_gradients_are_summed_in_float32():
    grads = [{"w": jnp.asarray(tree["w"], jnp.bfloat16)} for tree in series({"w": (6, 5)})]
    found = directions(grads)
    assert found[-1]["w"].dtype == np.float32
    assert_close(found, directions([{"w": tree["w"].astype(jnp.float32)} for tree in grads]))


def test_blocks_of_one_size_are_one_stack_wherever_they_are_from():
    shapes = {"blocks": {"w": (3, 6, 8), "b": (3, 6)}, "v": (6, 16), "u": {"kernel": (6, 8)}}
    state = jax.eval_shape(Soap(max_preconditioner_dim=8).init, normal(shapes, 0))
    stacks = {name: x.shape for name, x in state.first.items()}
    # Five of 6 x 8: three blocks, and the two that a long axis is cut into.
    assert stacks == {"3_of_6": (3, 6), "5_of_6x8": (5, 6, 8), "1_of_8x6": (1, 8, 6)}


def test_programs_do_not_grow_with_the_stack_and_multiply_in_full_precision():
    """A TPU would otherwise multiply float32 in bfloat16."""
    parts = Soap(max_preconditioner_dim=8)

    def programs(depth):
        grads = normal({"blocks": {"w": (depth, 6, 5)}}, 0)
        state = parts.init(grads)
        return [jax.make_jaxpr(f)(grads, state).jaxpr for f in (parts.observe, parts.precondition)]

    few, many = programs(2), programs(30)
    assert [len(program.eqns) for program in few] == [len(program.eqns) for program in many]

    def products(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                yield eqn.params["precision"]
            for inner in jaxprs_in_params(eqn.params):
                yield from products(inner)

    for program, count in zip(few, (2, 6), strict=True):
        assert list(products(program)) == [(jax.lax.Precision.HIGHEST,) * 2] * count


def test_the_state_of_the_papers_model():
    """In float32; the head's long axis is cut at 8192, and both parts are held to be split."""
    shapes = ap.param_shapes(ap.AdaPerceiver(ap.AdaPerceiverConfig(num_classes=11821)))
    state = jax.eval_shape(Soap().init, shapes)
    assert {x.dtype for x in jax.tree.leaves(state[1:])} == {jnp.dtype(jnp.float32)}
    held = {name: [x.shape for x in group] for name, group in state.factors.items()}
    assert held["92_of_832x832"] == [(92, 832, 832)] * 2
    assert held["22_of_2138x832"] == [(22, 2138, 2138), (22, 832, 832)]
    assert held["1_of_8192x832"] == [(1, 8192, 8192), (1, 832, 832)]
    assert held["1_of_3629x832"] == [(1, 3840, 3840), (1, 832, 832)]
    gigabytes = sum(x.size * 4 for x in jax.tree.leaves(state)) / 2**30
    assert gigabytes == pytest.approx(7.68, abs=0.01)


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        (lambda: soap(1e-3, b1=1.0), r"b1=1\.0: must be in \[0, 1\)"),
        (lambda: soap(1e-3, b2=-0.1), r"b2=-0\.1: must be in \[0, 1\)"),
        (lambda: soap(1e-3, precondition_frequency=0), "frequency=0: must be at least 1"),
        (lambda: soap(1e-3, start_preconditioning_step=0), "step=0: must be at least 1"),
        (lambda: soap(1e-3, max_preconditioner_dim=0), "dim=0: must be at least 1"),
        (lambda: Soap().init({"w": jnp.zeros((3, 0))}), r"w: shape \(3, 0\) is empty"),
        (lambda: Soap().init({"blocks": {"w": jnp.zeros(())}}), r"blocks/w: shape \(\) below 'bl"),
    ],
)
def test_bad_options_and_parameters(refused, message):
    with pytest.raises(ValueError, match=message):
        refused()


LOCKS_UP = """
import jax, adaperceiver_jax as ap
_, params = ap.from_pretrained("experiments/colab/weights/classifier")
gradients = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), params)
often = dict(precondition_frequency=2, start_preconditioning_step=2)
tx = ap.soap(1e-3, **often, max_preconditioner_dim=64)
state, update = tx.init(params), jax.jit(tx.update)
for _ in range(40):
    updates, state = update(gradients, state, params)
    jax.block_until_ready(updates)
"""


@pytest.mark.nightly(group="processes")
def test_eigenvectors_in_a_program_on_one_cpu_do_not_lock_up():
    """Several calls of LAPACK at once waited for each other for ever, in most runs."""
    command = [sys.executable, "-c", LOCKS_UP]
    subprocess.run(command, check=True, timeout=400, env=environment(), cwd=ROOT)
