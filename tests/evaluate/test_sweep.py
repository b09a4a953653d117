"""A sweep says of every sub-network what running it alone says."""

import itertools

import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.figures import frontier, plot_accuracy_flops
from adaperceiver_jax.evaluate.sweep import Point, sweep
from tests.small_models import TINY, model_and_params, random_images, random_params, run


def test_the_grid_is_every_granularity_at_every_depth():
    model, params = model_and_params(
        3, token_granularities=(2, 5, 9), max_latent_tokens=9, num_classes=5, output_feat_dim=None,
        depth=2, block_mask="block",
    )  # fmt: skip
    images = random_images(model.config, batch=3)
    widths = np.array([model.config.widths[0], model.config.full_width, 3])
    grid = run(model, params, images, method="grid", widths=widths)
    assert grid.shape == (3, 2, 3, 5)
    for (k, t), l in itertools.product(enumerate((2, 5, 9)), (1, 2)):
        for i, width in enumerate(widths.tolist()):
            alone = run(model, params, images, num_tokens=t, width=width, depth=l).logits
            np.testing.assert_allclose(grid[k, l - 1, i], alone[i], rtol=2e-5, atol=2e-5)


@pytest.fixture(scope="module")
def swept():
    model = ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY))
    params = random_params(model, 1)
    images = random_images(model.config, batch=24, seed=5)
    labels = np.random.default_rng(0).integers(0, 5, 24)
    batches = [(images[:16], labels[:16]), (images[16:], labels[16:])]
    return model, params, images, labels, sweep(model, params, batches, [4, 6, 16], [8, 24])


def test_each_point_is_the_accuracy_of_its_sub_network(swept):
    model, params, images, labels, points = swept
    assert [(p.num_tokens, p.width, p.depth) for p in points] == list(
        itertools.product([4, 6, 16], [8, 24], [1, 2, 3])
    )
    accuracies = set()
    for p in points[::4]:
        out = run(model, params, images, num_tokens=p.num_tokens, width=p.width, depth=p.depth)
        assert p.accuracy == pytest.approx(np.mean(out.logits.argmax(-1) == labels))
        assert p.gflops == ap.flops(model.config, p.num_tokens, p.width, p.depth).total / 1e9
        accuracies.add(p.accuracy)
    assert len(accuracies) > 1


def test_a_sweep_over_nothing_is_refused(swept):
    model, params, *_ = swept
    with pytest.raises(ValueError, match="batches: held no images"):
        sweep(model, params, [])


def test_a_grid_needs_classes():
    model, params = model_and_params(0, num_classes=None, output_feat_dim=6)
    with pytest.raises(ValueError, match="needs a model with classes"):
        model.apply({"params": params}, random_images(model.config), method="grid")


def test_the_frontier_holds_what_no_cheaper_one_beats():
    points = [
        Point(8, 1, 1, accuracy, cost)
        for accuracy, cost in ((0.5, 2.0), (0.4, 1.0), (0.45, 3.0), (0.4, 1.5), (0.6, 4.0))
    ]
    assert [p.gflops for p in frontier(points)] == [1.0, 2.0, 4.0]


def test_the_picture_is_written(tmp_path, swept):
    path = tmp_path / "figures" / "picture.png"
    plot_accuracy_flops(swept[-1], path, "title", Point(16, 24, 3, 0.5, 0.001))
    assert path.read_bytes().startswith(b"\x89PNG")
