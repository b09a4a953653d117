"""Policies: what each chooses, what it is said to cost, and that replaying agrees with serving."""

import jax
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.outcomes import Grid, make_grid
from adaperceiver_jax.evaluate.sweep import collect
from adaperceiver_jax.policies.budgets import Baseline, Budgets, EarlyExit, Optimal, Policy
from adaperceiver_jax.policies.learned import Learned, Peek, choosing_gflops, price_of
from adaperceiver_jax.policies.replay import join_budgets, replay
from adaperceiver_jax.policies.serve import Server
from tests.small_models import random_params, run, tiny


@pytest.fixture(scope="module")
def setting():
    model, params, images = tiny(batch=24, seed=1)
    params["output_adapter"] = jax.tree.map(lambda x: 4 * x, params["output_adapter"])
    labels = np.random.default_rng(0).integers(0, 5, 24)
    grid = make_grid(model.config)
    (outcomes,) = collect(model, params, [(images, labels)], grid)
    return model, params, images, labels, outcomes


def network_of(model, kind):
    c = model.config
    choices = dict(token_choices=4, width_choices=3, depth_choices=3)
    if kind == "peek":
        network = ap.PeekNetwork(ap.PeekConfig(num_classes=c.num_classes, hidden=8, **choices))
    else:
        patches = (c.image_size // c.patch_size) ** 2
        config = ap.PolicyConfig(embed_dim=c.embed_dim, num_patches=patches, **choices)
        network = ap.PolicyNetwork(config)
    return network, random_params(network)


def learned(setting, kind="peek", grid=None):
    model, params, *_ = setting
    c = model.config
    peek = Peek(c.token_granularities[0], 1) if kind == "peek" else None
    grid = grid or Grid(c.token_granularities, (c.full_width,), (c.depth,))
    return Learned(model, params, *network_of(model, kind), grid, peek=peek)


def middle(setting):
    """A confidence that some images reach after the first block and others do not."""
    return float(np.median(setting[4].scores.confidence[:, :, 0]))


def test_budgets_of_one_for_all_and_of_early_exit(setting):
    model, _, images, *_ = setting
    budgets = Baseline(model.config, num_tokens=4, depth=2)(images)
    for name, value in (("num_tokens", 4), ("width", 24), ("depth", 2)):
        assert getattr(budgets, name).tolist() == [value] * 24
    assert budgets.tau is None
    inner = learned(setting)
    policy = EarlyExit(0.5, inner)
    budgets = policy(images)
    np.testing.assert_array_equal(budgets.num_tokens, inner(images).num_tokens)
    np.testing.assert_array_equal(budgets.tau, np.full(24, 0.5, np.float32))
    assert policy.gflops == inner.gflops > 0
    assert set(budgets.width.tolist()) == {24}  # an axis without a choice has no say
    assert set(budgets.depth.tolist()) == {3}


def test_the_oracle_takes_the_cheapest_that_is_right(setting):
    model, _, images, _, outcomes = setting
    budgets = Optimal(model.config, outcomes)(images[::-1])
    ever = outcomes.scores.right.any((0, 1, 2))[::-1]
    assert 0 < ever.sum() < 24
    subs = outcomes.grid.sub_networks()
    costs = [ap.flops(model.config, *s).total for s in subs]
    flat = outcomes.scores.right.reshape(len(subs), -1)[:, ::-1]
    for i in range(24):
        chosen = (budgets.num_tokens[i], budgets.width[i], budgets.depth[i])
        own = ap.flops(model.config, *map(int, chosen)).total
        right = [cost for cost, good in zip(costs, flat[:, i], strict=True) if good]
        assert own == (min(right) if right else min(costs))
    whole = Optimal(model.config, outcomes, "whole")(images[::-1])
    assert set(whole.num_tokens[~ever].tolist()) == {16}
    np.testing.assert_array_equal(whole.num_tokens[ever], budgets.num_tokens[ever])


@pytest.mark.parametrize("kind", ["peek", "patches"])
def test_scores_are_those_of_the_network(setting, kind):
    model, params, images, *_ = setting
    c = model.config
    grid = make_grid(c)
    policy = learned(setting, kind, grid)
    if kind == "peek":
        seen = jax.nn.log_softmax(run(model, params, images, num_tokens=2, depth=1).logits)
    else:
        seen = run(model, params, images, method="embed")
    out = run(policy.network, policy.network_params, np.asarray(seen))
    tokens, widths, depths = out.token_logits, out.width_logits, out.depth_logits
    want = tokens[:, :, None, None] + widths[:, None, :, None] + depths[:, None, None, :]
    want = want.reshape(24, -1)
    np.testing.assert_allclose(policy.scores(images), want, rtol=2e-5, atol=2e-5)
    budgets = policy(images)
    best = np.array(grid.sub_networks())[want.argmax(-1)]
    np.testing.assert_array_equal(np.stack([budgets.num_tokens, budgets.width], 1), best[:, :2])


def test_a_price_meets_its_target():
    generator = np.random.default_rng(0)
    costs = np.array([1.0, 2.0, 5.0, 9.0])
    scores = np.log(costs) + generator.normal(size=(4000, 4))
    for target in (1.2, 2.0, 4.0, 6.0):
        price = price_of(scores, costs, target)
        mean = costs[(scores - price * costs).argmax(-1)].mean()
        assert target - 0.02 <= mean <= target
    assert price_of(scores, costs, 9.0) == 0.0
    with pytest.raises(ValueError, match="the cheapest budget takes 1"):
        price_of(scores, costs, 0.5)


def test_a_target_includes_choosing(setting):
    _, _, images, *_ = setting
    policy = learned(setting)
    target = policy.gflops + np.median(policy.costs)
    at = policy.at(target, [images[:10], images[10:]])
    assert policy.at(target, images).price == policy.at(target, [images]).price
    spent = policy.costs[[policy.grid.tokens.index(t) for t in at(images).num_tokens]].mean()
    one_image = np.ptp(policy.costs) / 24  # at the price one image is torn, and rounding decides
    assert spent + policy.gflops <= target + one_image
    assert policy.price == 0.0


def test_choosing_is_counted(setting):
    model, *_ = setting
    c = model.config
    patches = network_of(model, "patches")[0]
    assert choosing_gflops(c, patches, None) == ap.flops(patches.config).total / 1e9
    peek = network_of(model, "peek")[0]
    found = choosing_gflops(c, peek, Peek(4, 1)) * 1e9
    alone = ap.flops(c.replace(output_feat_dim=None), 4, None, 1)
    patches = (c.image_size // c.patch_size) ** 2
    shared = alone.by_part["patch_embed"] + alone.by_part["embed_ffn"]
    shared += 4 * patches * c.embed_dim**2  # keys and values of the patches
    extra = found - ap.flops(peek.config).total
    fold = 2 * c.embed_dim**2 + 2 * 4 * c.embed_dim**2  # of the class token, once a batch
    assert extra == pytest.approx(alone.total - shared - fold)


@pytest.mark.parametrize(
    "make",
    [
        lambda s: EarlyExit(middle(s), Baseline(s[0].config)),
        lambda s: EarlyExit(middle(s), learned(s, "peek", make_grid(s[0].config))),
        lambda s: learned(s, "patches"),
    ],
    ids=["early exit", "peek, then early exit", "patches"],
)
def test_what_is_looked_up_is_what_is_served(setting, make):
    model, params, images, labels, outcomes = setting
    policy = make(setting)
    if isinstance(policy, EarlyExit):
        left = replay(model.config, policy(images), outcomes).depth
        assert len(set(left.tolist())) > 1
    served = Server(model, params, policy, batch_size=8, batch_sizes=())(images)
    found = replay(model.config, policy(images), outcomes, batch_size=8)
    np.testing.assert_array_equal(served.depth, found.depth)
    np.testing.assert_array_equal(served.logits.argmax(-1) == labels, found.right)
    np.testing.assert_allclose(served.gflops, found.gflops + policy.gflops, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, p: Baseline(s[0].config, depth=9), "depth=9: must be in"),
        (lambda s, p: EarlyExit(1.5, p), r"tau=1\.5: must be a probability"),
        (lambda s, p: EarlyExit(p, 0.9), r"policy=0\.9: must be a Policy; tau comes first"),
        (lambda s, p: Server(s[0], s[1], None), "policy=None: must be a Policy"),
        (lambda s, p: Policy()(s[2]), r"Policy\.choose: a policy must define it"),
        (lambda s, p: p.at(1.0, []), r"images=\[\]: a price is found on images"),
        (lambda s, p: p.at(p.gflops, s[2]), "are left for the model"),
        (lambda s, p: Optimal(s[0].config, s[4])(s[2] + 1e-3), "image 0: is not among the 24"),
        (
            lambda s, p: replay(s[0].config, Baseline(s[0].config, 6)(s[2]), s[4]),
            "num_tokens=6: these outcomes hold 2, 4, 8, 16",
        ),
        (
            lambda s, p: replay(s[0].config, Budgets.fixed(3, 4, 24, 3), s[4]),
            "budgets: 3 for the outcomes of 24",
        ),
    ],
)
def test_what_cannot_be_is_refused(setting, call, message):
    with pytest.raises((ValueError, NotImplementedError), match=message):
        call(setting, learned(setting))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([[4]], [8], [3]), r"num_tokens of shape \(1, 1\): must be \(B,\)"),
        (([4, 4], [8], [3, 3]), r"width of shape \(1,\): must be \(2,\), as num_tokens"),
        (([4, 4], [8, 8], [3.0, 3.0]), "depth of dtype float64: must be integers"),
        (([4, 4], [8, 8], [3, 3], [0.5]), r"tau of shape \(1,\): must be \(2,\)"),
        (([4, 4], [8, 8], [3, 3], [0.5, 1.5]), "tau=1.5 of image 1: must be a probability"),
        (([4, 4], [8, 8], [3, 3], [np.nan, 0.5]), "tau=nan of image 0: must be a probability"),
    ],
)
def test_bad_budgets_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Budgets(*fields)


def test_batches_join():
    a, b = Budgets.fixed(2, 4, 24, 3, 0.5), Budgets([8], [24], [2], [0.7])
    joined = join_budgets([a, b])
    assert joined.num_tokens.tolist() == [4, 4, 8]
    np.testing.assert_array_equal(joined.tau, np.array([0.5, 0.5, 0.7], np.float32))
    assert join_budgets([Budgets.fixed(1, 8, 24, 2)]).tau is None
    with pytest.raises(ValueError, match="take one policy's"):
        join_budgets([a, Budgets.fixed(1, 8, 24, 2)])
