"""Serving by budget: the answers of each image's own sub-network, in order, in few programs."""

import dataclasses

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.flops import exit_flops
from adaperceiver_jax.policies import serve
from adaperceiver_jax.policies.budgets import Budgets, Policy
from adaperceiver_jax.policies.serve import Queue, Server
from tests.small_models import TINY, run, tiny

CLOSE = dict(rtol=1e-5, atol=1e-5)
DEPTH = 5
COUNT = 45


@dataclasses.dataclass
class Drawn(Policy):
    """Budgets drawn from the bits of each image's first pixel, whatever else is in the batch."""

    tokens: tuple = (16,)
    widths: tuple = (24,)
    depths: tuple = (DEPTH,)
    taus: tuple = (None,)
    gflops: float = 0.5

    def choose(self, images, embedded=None):
        seeds = np.asarray(images)[:, 0, 0, 0].copy().view(np.uint32)
        draws = [np.random.default_rng(int(seed)) for seed in seeds]

        def draw(choices):
            return np.array([choices[rng.integers(len(choices))] for rng in draws])

        tau = None if self.taus == (None,) else draw(self.taus)
        return Budgets(draw(self.tokens), draw(self.widths), draw(self.depths), tau)


@pytest.fixture(scope="module")
def setup():
    return tiny(batch=COUNT, seed=2, depth=DEPTH, layer_scale=None)


@pytest.fixture(scope="module")
def taus(setup):
    """Thresholds far from every confidence, so that rounding decides for no image."""
    model, params, images = setup
    read = np.full(DEPTH, model.config.max_latent_tokens)
    logits = np.asarray(run(model, params, images, "readouts", readout_tokens=read).depth_logits)
    chances = np.exp(logits - logits.max(-1, keepdims=True))
    confidence = (chances / chances.sum(-1, keepdims=True)).max(-1)
    values = np.sort(confidence.ravel())
    gaps, found = np.diff(values), []
    for quantile in (0.5, 0.75, 0.9):
        near = np.abs(np.arange(len(gaps)) - quantile * len(gaps)) < 15
        widest = np.argmax(np.where(near, gaps, 0))
        found.append(float(values[widest : widest + 2].mean()))
    return tuple(found)


MIXED = dict(tokens=(3, 16), widths=(8, 24), depths=(2, 5))
SIZES = dict(batch_size=8, batch_sizes=(2,))
"""Sizes of most tests, which share their programs."""


def test_exits_are_those_of_early_exit(setup, taus):
    model, params, images = setup
    for tau in taus:
        served = Server(model, params, Drawn(taus=(tau,)), **SIZES)(images)
        want = ap.early_exit(model, params, images, tau)
        assert len(set(served.depth)) > 2
        np.testing.assert_array_equal(served.depth, want.depth)
        np.testing.assert_allclose(served.logits, want.logits, **CLOSE)
        assert served.logits.dtype == np.float32


@pytest.mark.slow
def test_every_image_has_the_answer_and_the_gflops_of_its_own_sub_network(setup, taus):
    """The GFLOPs include the policy and, where images may leave early, their exit tests."""
    model, params, images = setup
    policy = Drawn(**MIXED)
    budgets = policy(images)
    served = Server(model, params, policy, **SIZES)(images)
    for name in ("num_tokens", "width", "depth"):
        np.testing.assert_array_equal(getattr(served, name), getattr(budgets, name))
    chosen = np.stack([budgets.num_tokens, budgets.width, budgets.depth], axis=1)
    assert len(np.unique(chosen, axis=0)) == 8
    for n, w, l in [(3, 8, 2), (3, 24, 5), (16, 8, 5), (16, 24, 2)]:
        rows = (chosen == (n, w, l)).all(axis=1)
        want = run(model, params, images, num_tokens=n, width=w, depth=l).logits
        np.testing.assert_allclose(served.logits[rows], np.asarray(want)[rows], **CLOSE)
    tested = Server(model, params, Drawn(**MIXED, taus=taus), **SIZES)(images)
    for found, count in ((served, ap.flops), (tested, exit_flops)):
        chosen = np.stack([found.num_tokens, found.width, found.depth], axis=1)
        for i, sub_network in enumerate(chosen.tolist()):
            own = count(model.config, *sub_network, batch_size=8).total / 1e9
            assert found.gflops[i] == pytest.approx(own + policy.gflops, rel=1e-9)


def assert_same(served, want, order=slice(None)):
    for name in ("num_tokens", "width", "depth"):
        np.testing.assert_array_equal(getattr(served, name), getattr(want, name)[order])
    np.testing.assert_allclose(served.logits, want.logits[order], **CLOSE)
    np.testing.assert_allclose(served.gflops, want.gflops[order], rtol=1e-12)


def test_answers_depend_on_no_other_image_of_the_batch_nor_on_where_a_stream_is_cut(setup, taus):
    """Also where one of them is not finite: that one leaves at its ceiling."""
    model, params, images = setup
    policy = Drawn(**MIXED, taus=taus)
    server = Server(model, params, policy, **SIZES)
    want = server(images)
    assert len(set(want.depth)) > 3
    order = np.random.default_rng(0).permutation(COUNT)
    assert_same(server(images[order]), want, order)
    for row in (0, 30):
        assert_same(server(images[row : row + 1]), want, [row])
    for cuts in ([1], [3, 3, 20, 44]):
        assert_same(server(iter(np.split(images, cuts))), want)
    ceilings = policy(images).depth
    row = int((want.depth < ceilings).argmax())
    broken, others = images.copy(), np.arange(COUNT) != row
    broken[row, 4:] = np.nan  # its budget is drawn from its first pixel
    served = server(broken)
    assert served.depth[row] == ceilings[row] > want.depth[row]
    assert not np.isfinite(served.logits[row]).any()
    np.testing.assert_array_equal(served.depth[others], want.depth[others])
    np.testing.assert_allclose(served.logits[others], want.logits[others], **CLOSE)


@pytest.mark.slow
def test_what_is_computed_beyond_what_the_images_take(setup, taus, monkeypatch):
    """Nothing where nobody leaves a full batch; padding; little of a stream, whose queues do not
    outgrow two batches."""
    model, params, images = setup

    def served(count, policy, size, sizes):
        server = Server(model, params, policy, batch_size=size, batch_sizes=sizes)
        return server(np.concatenate([images] * count))

    whole = served(1, Drawn(), 15, None)
    assert whole.computed_gflops == pytest.approx(whole.gflops.sum(), rel=1e-9)
    padded = served(1, Drawn(gflops=0), 64, ())
    full = ap.flops(model.config, batch_size=64).total / 1e9
    assert padded.computed_gflops == pytest.approx(64 * full, rel=1e-9)
    lengths, put = [], Queue.put

    def counted(self, *arguments):
        put(self, *arguments)
        lengths.append(len(self))

    monkeypatch.setattr(Queue, "put", counted)
    stream = served(4, Drawn(taus=taus, gflops=0), 8, (2, 4, 6))
    assert set(stream.depth) == set(range(1, DEPTH + 1))
    assert 0.9 < stream.gflops.sum() / stream.computed_gflops <= 1
    assert 8 < max(lengths) <= 15


@pytest.mark.slow
def test_a_group_runs_few_programs_whatever_the_depths_and_thresholds(setup, taus):
    model, params, images = setup
    model = model.clone(unroll=2)  # other programs than those of the other tests
    programs = (serve.read, serve.run_segment)
    before = [program._cache_size() for program in programs]
    for tau, depths in zip((None, *taus), ((5,), (2, 5), (3, 4), (1, 5)), strict=True):
        policy = Drawn(widths=(8, 24), depths=depths, taus=(tau,))
        server = Server(model, params, policy, **SIZES)
        for count in (COUNT, 1, 13):
            server(images[:count])
    read, segments = (p._cache_size() - b for p, b in zip(programs, before, strict=True))
    assert read <= 2  # one per size
    assert segments <= 2 * 2  # per width


@pytest.mark.slow
def test_batches_shrink_by_eighths_as_images_leave(setup, taus, monkeypatch):
    """64 images, and as soon as 8 have left, 56: no call runs on where a smaller one would do."""
    model, params, images = setup
    runs, run = [], serve.run_segment

    def watched(*arguments):
        segment = run(*arguments)
        ceiling, left_at = np.asarray(arguments[8]), np.asarray(segment.left_at)
        runs.append((len(ceiling), int((ceiling > 0).sum()), int((left_at > 0).sum())))
        return segment

    monkeypatch.setattr(serve, "run_segment", watched)
    images = np.concatenate([images] * 2)[:64]
    served = Server(model, params, Drawn(taus=(taus[1],)), batch_size=64)(images)
    assert [size for size, _, _ in runs] == sorted((r[0] for r in runs), reverse=True)
    assert runs[0][:2] == (64, 64)
    assert len(runs) > 2
    for size, count, left in runs:
        assert size == -(-count // 8) * 8
        smaller = -(-count // 8) * 8 - 8
        assert count - left <= smaller
    assert sum(left for _, _, left in runs) == 64 == len(served.depth)


VIT = ap.ViT(ap.ViTConfig())
DENSE = ap.AdaPerceiver(
    ap.AdaPerceiverConfig(**{**TINY, "num_classes": None, "output_feat_dim": 4})
)


def zeros(count, height=16):
    return np.zeros((count, height, 16, 3), np.float32)


@pytest.mark.parametrize(
    ("model", "arguments", "images", "message"),
    [
        (None, dict(batch_size=0), None, "batch_size=0: must be an integer, at least 1"),
        (None, dict(batch_size=1.5), None, r"batch_size=1\.5: must be an integer, at least 1"),
        (None, dict(batch_size=8, batch_sizes=(4, 9)), None, r"=\(4, 9\): must be in 1\.\.8"),
        (VIT, {}, None, "model=ViT: must be an AdaPerceiver"),
        (DENSE, {}, None, "num_classes=None: serving needs"),
        (None, {}, zeros(2, 15), "multiples of patch_size=4"),
        (None, {}, zeros(0), "images: none were given"),
        (None, {}, iter(()), "images: none were given"),
        (None, {}, 7, "images of type int: must be an array"),
        (None, {}, iter([zeros(2), zeros(2, 20)]), "one call takes one size"),
    ],
)
def test_what_cannot_be_served_is_refused(setup, model, arguments, images, message):
    with pytest.raises(ValueError, match=message):
        Server(model or setup[0], {}, Drawn(), **arguments)(images)  # no parameters: nothing runs


class Second(Policy):
    """Chooses well for a first batch of 8 images, and for the next what is given."""

    def __init__(self, choose):
        self.choices = iter([Drawn().choose, choose])

    def choose(self, images, embedded=None):
        return next(self.choices)(images)


@pytest.mark.parametrize(
    ("choose", "message"),
    [
        (Drawn(tokens=(0,)).choose, "budget of image 8: num_tokens=0: must be at least 1"),
        (Drawn(widths=(25,)).choose, r"budget of image 8: width=25: must be in 1\.\.24"),
        (Drawn(depths=(6,)).choose, r"budget of image 8: depth=6: must be in 1\.\.5"),
        (lambda _: Budgets.fixed(7, 16, 24, 5), "policy: chose 7 budgets for 8 images"),
    ],
)
def test_bad_budgets_name_the_image(setup, choose, message):
    model, params, images = setup
    with pytest.raises(ValueError, match=message):
        Server(model, params, Second(choose), batch_size=8)(images)
