"""A sweep says of every sub-network what running it alone says."""

import itertools

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate import outcomes
from adaperceiver_jax.evaluate.costs import Cost, measure
from adaperceiver_jax.evaluate.sweep import SweepFolder, collect, points, sweep, weights_digest
from tests.small_models import model_and_params, random_images, run, tiny


@pytest.fixture(scope="module")
def swept():
    """A model, images, the outcomes of two batches of 12, and all points; the last 3 images have
    no label."""
    model, params, images = tiny(batch=24, seed=1)
    labels = np.where(np.arange(24) < 21, np.random.default_rng(0).integers(0, 5, 24), -1)
    batches = [(images[:12], labels[:12]), (images[12:], labels[12:])]
    parts = list(
        collect(model, params, batches, outcomes.make_grid(model.config, [4, 6, 16], [8, 24]))
    )
    return model, params, images, labels, parts, points(model.config, outcomes.join(parts))


def test_each_point_is_the_accuracy_of_its_sub_network_on_the_labelled_images(swept):
    model, params, images, labels, parts, found = swept
    np.testing.assert_array_equal(outcomes.join(parts).digests, outcomes.digest(images[:21]))
    assert [(p.num_tokens, p.width, p.depth) for p in found] == list(
        itertools.product([4, 6, 16], [8, 24], [1, 2, 3])
    )
    accuracies = set()
    for p in found[::7]:
        logits = run(model, params, images, **p.sub_network).logits[:21]
        assert p.accuracy == pytest.approx(np.mean(logits.argmax(-1) == labels[:21]))
        assert p.top5 == 1.0  # of five classes
        assert p.gflops == ap.flops(model.config, p.num_tokens, p.width, p.depth).total / 1e9
        accuracies.add(p.accuracy)
    assert len(accuracies) > 1
    kinds = {p.num_tokens: p.tokens_are for p in found}
    assert kinds == {4: "trained", 6: "interpolated", 16: "trained"}
    with pytest.raises(ValueError, match="batches: held no images"):
        sweep(model, params, [])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mask", "most", "rope_scale"),
    [("block", 9, None), ("none", 9, None), ("block", 5, None), ("block", 5, 1.0)],
)
def test_scores_are_those_of_separate_calls(mask, most, rope_scale):
    model, params = model_and_params(
        3, token_granularities=(2, 5, 9), max_latent_tokens=most, num_classes=7, depth=3,
        output_feat_dim=None, block_mask=mask, rope_scale=rope_scale,
    )  # fmt: skip
    images, labels = random_images(model.config, batch=4), np.array([0, 3, 6, 2])
    grid = outcomes.Grid((2, 3, 9, 12), (model.config.widths[0], model.config.full_width), (1, 3))
    found = jax.jit(lambda p, x: outcomes.grid_scores(model, p, x, labels, grid))(params, images)
    for k, j, i in ((0, 1, 0), (1, 0, 1), (2, 0, 0), (2, 1, 1), (3, 1, 0)):
        t, w, l = grid.tokens[k], grid.widths[j], grid.depths[i]
        alone = run(model, params, images, num_tokens=t, width=w, depth=l).logits
        right, top5, confidence, loss = outcomes.score(alone, labels)
        np.testing.assert_array_equal(found.right[k, j, i], right)
        np.testing.assert_array_equal(found.top5[k, j, i], top5)
        np.testing.assert_allclose(found.confidence[k, j, i], confidence, rtol=1e-5)
        np.testing.assert_allclose(found.loss[k, j, i], loss, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("mask", "most", "rope_scale", "count"),
    [
        ("block", 9, None, 3),
        ("causal", 9, None, 4),
        ("none", 9, None, 4),
        ("block", 5, None, 4),  # 9 is trained, but beyond the maximum its positions are divided
        ("block", 5, 1.0, 3),
    ],
)
def test_trained_token_counts_share_a_pass_where_they_can(mask, most, rope_scale, count):
    fields = dict(block_mask=mask, max_latent_tokens=most, rope_scale=rope_scale)
    config = ap.AdaPerceiverConfig(token_granularities=(2, 5, 9), **fields)
    assert len(outcomes.passes(config, (2, 3, 9, 12))) == count


def test_scores_are_their_definitions():
    logits = np.random.default_rng(0).normal(size=(3, 40, 9)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 9, 40)
    right, top5, confidence, loss = outcomes.score(logits, labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    best = np.argsort(-logits, axis=-1)[..., :5]
    np.testing.assert_array_equal(right, best[..., 0] == labels)
    np.testing.assert_array_equal(top5, (best == labels[:, None]).any(-1))
    np.testing.assert_allclose(confidence, probabilities.max(-1), rtol=1e-5)
    np.testing.assert_allclose(loss, -np.log(probabilities[:, np.arange(40), labels]), rtol=1e-4)
    assert 0 < right.mean() < top5.mean() < 1
    bad = np.array([[np.nan, 1.0], [np.inf, 0.0], [2.0, 1.0]], np.float32)
    right, top5, _, _ = outcomes.score(bad, np.array([0, 0, 0]))
    assert right.tolist() == top5.tolist() == [False, False, True]


def test_a_grid_that_the_model_has_not_is_refused(swept):
    for changes, message in (
        (dict(tokens=[0, 4]), "num_tokens=0: must be at least 1"),
        (dict(widths=[99]), "width=99: must be in"),
        (dict(depths=[4]), "depth=4: must be in"),
        (dict(depths=[]), r"depths=\(\): name at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            outcomes.make_grid(swept[0].config, **changes)


def test_a_folder_gives_back_what_was_put_in(swept, tmp_path):
    model, *_, (first, second), found = swept
    about = {"tokens": (4, 6, 16), "widths": (8, 24), "depths": (1, 2, 3), "weights": "a"}
    SweepFolder(tmp_path / "s", about).add(first)
    again = SweepFolder(tmp_path / "s", about)
    assert again.batches == 1
    again.add(second)
    costs = [Cost(4, 8, l, float(l), 2.0, 16, "a cpu") for l in (1, 2, 3)]
    again.add_costs(4, 8, costs)
    assert again.has_costs(4, 8)
    assert not again.has_costs(4, 24)
    opened = SweepFolder(tmp_path / "s")
    assert len(opened.outcomes()) == 21
    assert points(model.config, opened.outcomes()) == found
    measured = points(model.config, opened.outcomes(), opened.costs())
    assert [p.latency_ms for p in measured[:4]] == [1.0, 2.0, 3.0, None]
    assert [p.batch for p in measured[:4]] == [16, 16, 16, None]
    assert [p.device for p in measured[:4]] == ["a cpu"] * 3 + [""]


def test_a_folder_of_another_sweep_is_refused(tmp_path):
    about = {"tokens": [4], "widths": [8], "depths": [1], "weights": "a"}
    SweepFolder(tmp_path / "s", about)
    with pytest.raises(ValueError, match=r"another weights \(a; now b\); name another --out"):
        SweepFolder(tmp_path / "s", {**about, "weights": "b"})
    with pytest.raises(ValueError, match="holds no sweep"):
        SweepFolder(tmp_path / "none")
    with pytest.raises(ValueError, match="no outcomes yet"):
        SweepFolder(tmp_path / "s").outcomes()


def test_weights_are_told_apart(swept):
    _, params, *_ = swept
    other = jax.tree.map(lambda x: x, params)
    assert weights_digest(other) == weights_digest(params)
    other["process_latents"] = jax.tree.map(lambda x: x + 1e-3, other["process_latents"])
    assert weights_digest(other) != weights_digest(params)


def test_every_depth_is_measured_by_one_program_that_gives_what_the_model_gives(swept):
    model, params, images, *_ = swept
    costs = measure(model, params, images[:4], 6, 8, (1, 3), repeats=2)
    assert [(c.num_tokens, c.width, c.depth) for c in costs] == [(6, 8, 1), (6, 8, 3)]
    assert all(c.latency_ms > 0 for c in costs)
    assert {(c.batch, c.device) for c in costs} == {(4, "cpu")}
    given = sum(x.size * 4 for x in jax.tree.leaves((params, images[:4])))
    latents = 4 * 4 * 6 * model.config.embed_dim  # of 4 images, in float32, beside what was given
    assert all(c.memory_mib > (given + latents) / 2**20 for c in costs)
