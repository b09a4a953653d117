"""Learning budgets: losses and metrics by hand, the baseline, what is frozen, what is refused.

Numbers agree to 1e-5.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.evaluate.flops import flops
from adaperceiver_jax.evaluate.outcomes import grid_scores
from adaperceiver_jax.tasks.make import make_task
from adaperceiver_jax.tasks.policy import (
    LearnPolicy,
    PolicySettings,
    Regress,
    Reinforce,
    policy_network,
    predicted,
)
from adaperceiver_jax.train.step import loss_and_gradients
from tests.small_models import TINY, random_params, run
from tests.train.small import programs_of, run_config

MODEL = ap.AdaPerceiver(ap.AdaPerceiverConfig(**{**TINY, "widths": (8, 24)}))
FROZEN = random_params(MODEL)
RNG = np.random.default_rng(0)
BATCH = {
    "image": RNG.integers(0, 255, (12, 16, 16, 3), np.uint8),
    "label": RNG.integers(0, 5, 12).astype(np.int32),
}
KEY = jax.random.key(7)
SOME = ("depth", "tokens")


def make(kind=Reinforce, **settings):
    learner = "reinforce" if kind is Reinforce else "regress"
    chosen = PolicySettings(learner=learner, **settings)
    return kind(
        model=policy_network(chosen, MODEL.config, jnp.float32),
        frozen=MODEL,
        frozen_params=lambda: FROZEN,
        settings=chosen,
        image_size=(16, 16),
    )


def constants_of(task, baseline):
    return {**task.constants(), "baseline": jnp.float32(baseline)}


def outputs_of(task, params, images):
    """What the network says, seeing what the frozen model shows it."""
    see = jax.jit(lambda p, x: task.model.apply({"params": params}, task.see(p, x)))
    return see(FROZEN, images)


def log_softmax(x):
    x = np.asarray(x, np.float64)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.fixture(scope="module")
def grid_losses():
    """task -> the frozen model's losses (T, W, L, B) of its grid on BATCH."""
    found = {}

    def losses(task):
        if task.settings.axes not in found:
            images = task.images.normalise(BATCH["image"])
            scores = jax.jit(lambda p, x, y: grid_scores(MODEL, p, x, y, task.grid))
            found[task.settings.axes] = np.asarray(scores(FROZEN, images, BATCH["label"]).loss)
        return found[task.settings.axes]

    return losses


def test_the_reinforced_loss_by_hand(grid_losses):
    weights = dict(cost_weight=0.5, entropy=0.3, reward_scale=2.0)
    task = make(axes=SOME, looks_at="peek", **weights)
    params = random_params(task.model)
    samples, shared = jax.jit(task.draw)(BATCH, KEY, 3)
    total, metrics = jax.jit(task.loss)(params, constants_of(task, -4.5), samples, shared, KEY)
    out = outputs_of(task, params, samples["images"])
    logits = [out.token_logits, out.width_logits, out.depth_logits]
    assert [x.shape[1] for x in logits] == [4, 1, 3]
    actions = [
        (np.asarray(x) + np.asarray(noise)).argmax(-1)
        for x, noise in zip(logits, samples["noise"], strict=True)
    ]
    images = np.arange(12)
    cost = (actions[0] / 3 + actions[2] / 2) / 2  # 4 token counts, 3 depths
    losses = grid_losses(task)
    rewards = -2.0 * losses[(*actions, images)] - 0.5 * cost
    log_probs = [log_softmax(x) for x in logits]
    drawn = sum(lp[images, a] for lp, a in zip(log_probs, actions, strict=True))
    entropies = sum(-(np.exp(lp) * lp).sum(-1) for lp in log_probs)
    assert len(set(zip(*(a.tolist() for a in actions), strict=True))) > 2
    want = {
        "policy": -((rewards + 4.5) * drawn).mean(),
        "entropy": -0.3 * entropies.mean(),
        "reward": rewards.mean(),
        "baseline": -4.5,
    }
    assert set(metrics) == set(want)
    # Terms of some 4.5 nearly cancel in "policy": an absolute error of their float32 rounding.
    for name, value in want.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, atol=2e-6, err_msg=name)
    np.testing.assert_allclose(total, metrics["policy"] + metrics["entropy"], rtol=1e-6)


def test_noise_draws_from_the_softmax():
    task = make()
    many = {"image": np.zeros((20_000, 1, 1, 3), np.uint8), "label": np.zeros(20_000, np.int32)}
    samples, _ = jax.jit(task.draw)(many, KEY, 0)
    logits = np.array([0.3, -0.5, 1.0, 0.0])
    assert len({float(noise.ravel()[0]) for noise in samples["noise"]}) == len(samples["noise"])
    drawn = (logits + np.asarray(samples["noise"][0])).argmax(-1)
    share, want = np.bincount(drawn, minlength=4) / 20_000, np.exp(log_softmax(logits))
    assert (np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / 20_000)).all()


def test_no_gradient_reaches_the_frozen_model_and_parts_of_a_batch_add_up():
    task = make(looks_at="peek")
    params, constants = random_params(task.model), constants_of(task, -4.5)
    samples, shared = jax.jit(task.draw)(BATCH, KEY, 3)
    gradient = jax.jit(jax.grad(lambda *a: task.loss(*a)[0], argnums=(0, 1)))
    ours, theirs = gradient(params, constants, samples, shared, KEY)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(theirs["frozen"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(ours["head_tokens"]))
    split = jax.jit(lambda *a: loss_and_gradients(task, params, {}, *a, KEY, parts=3)[1])
    sums = split(constants, samples, shared)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), sums, ours)


def test_the_baseline_is_the_running_mean_of_the_rewards_before(monkeypatch):
    """The state holds it and the network, and nothing of the frozen model."""
    monkeypatch.setattr(jax, "device_count", lambda *_: 1)
    task = make(baseline_decay=0.75)
    programs = programs_of(task, 1)
    shapes = jax.tree.structure(ap.param_shapes(task.model))
    assert jax.tree.structure(programs.state.params) == shapes
    assert len(jax.tree.leaves(programs.state.opt_state)) == shapes.num_leaves
    state, constants = programs.init(KEY), task.constants()
    rewards, baselines = [], []
    for number in range(3):
        batch = {name: np.roll(x, number, axis=0)[:8] for name, x in BATCH.items()}
        state, metrics = programs.update(state, constants, batch, number + 1)
        rewards.append(float(metrics["reward"]))
        baselines.append(float(metrics["baseline"]))
    first, second, third = rewards
    assert len({*rewards}) == 3
    assert baselines[:2] == [first, first]
    after = 0.75 * first + 0.25 * second
    np.testing.assert_allclose(baselines[2], after, rtol=1e-6)
    assert set(state.memory) == {"baseline"}
    np.testing.assert_allclose(state.memory["baseline"], 0.75 * after + 0.25 * third, rtol=1e-6)


def test_the_peek_is_the_smallest_sub_networks_log_probabilities():
    task = make(looks_at="peek", peek_depth=2)
    images = np.asarray(task.images.normalise(BATCH["image"]))
    want = log_softmax(run(MODEL, FROZEN, images, num_tokens=2, depth=2).logits)
    np.testing.assert_allclose(jax.jit(task.see)(FROZEN, images), want, rtol=1e-4, atol=1e-5)


def test_evaluation_scores_the_budget_of_the_largest_logits_and_regression_by_hand(grid_losses):
    """What only regression has is the errors of its losses; the rest is REINFORCE's too."""
    task = make(Regress, axes=("tokens",), cost_weight=0.5, reward_scale=2.0)
    params = random_params(task.model)
    got = jax.jit(lambda *a: task.evaluate(*a, None))(params, task.constants(), BATCH)
    images = np.asarray(task.images.normalise(BATCH["image"]))
    out = outputs_of(task, params, images)
    chosen = np.asarray(out.token_logits).argmax(-1)
    assert len(set(chosen.tolist())) > 1
    counts = MODEL.config.token_granularities
    logits = np.asarray(run(MODEL, FROZEN, images, "readouts").token_logits)
    taken = logits[chosen, np.arange(12)]
    loss = -log_softmax(taken)[np.arange(12), BATCH["label"]]
    np.testing.assert_array_equal(got["accuracy"], taken.argmax(-1) == BATCH["label"])
    gflops = [flops(MODEL.config, counts[i]).total / 1e9 for i in chosen]
    np.testing.assert_allclose(got["gflops"], gflops, rtol=1e-6)
    np.testing.assert_allclose(got["cost"], chosen / 3, rtol=1e-6)
    np.testing.assert_allclose(got["reward"], -2 * loss - 0.5 * chosen / 3, rtol=1e-4)
    errors = np.asarray(predicted(out)) + np.minimum(grid_losses(task), 10)
    np.testing.assert_allclose(got["loss"], (errors**2).mean((0, 1, 2)), rtol=1e-4)
    samples, shared = jax.jit(task.draw)(BATCH, KEY, 0)
    learn = jax.jit(jax.value_and_grad(lambda *a: task.loss(*a)[0]))
    loss, gradient = learn(params, task.constants(), samples, shared, KEY)
    np.testing.assert_allclose(loss, (errors**2).mean(), rtol=1e-4)
    assert np.asarray(gradient["head_tokens"]["kernel"]).any()
    assert Reinforce.judge is LearnPolicy.judge


def test_a_step_over_all_token_counts_costs_about_one_pass():
    task = make()
    network = 3 * flops(task.model.config).total
    once = flops(MODEL.config)
    assert once.encoder < task.train_flops({}) - network < 1.5 * once.total
    widths = make(axes=("tokens", "width")).train_flops({}) - network
    assert widths > 1.5 * (task.train_flops({}) - network)
    peek = make(looks_at="peek")
    extra = flops(MODEL.config, 2, depth=1).total + 3 * flops(peek.model.config).total
    np.testing.assert_allclose(peek.train_flops({}), task.train_flops({}) - network + extra)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy.learner": "guess"}, "learner='guess': must be one of reinforce, regress"),
        ({"policy.looks_at": "sky"}, "config.policy.looks_at='sky': must be one of patches, peek"),
        ({"policy.axes": ("height",)}, r"axes=\('height',\): must be some of tokens, width"),
        ({"policy.axes": ()}, r"config.policy.axes=\(\): must be some of tokens"),
        ({"policy.axes": ("depth", "depth")}, "each once"),
        ({"policy.peek_depth": 0}, "config.policy.peek_depth=0: must be at least 1"),
        ({"policy.cost_weight": -1.0}, "config.policy.cost_weight=-1.0: must be at least 0"),
        ({"policy.baseline_decay": 1.0}, r"baseline_decay=1.0: must be in \[0, 1\)"),
        ({"policy.path": "''"}, "config.policy.path='': .*=made-up"),
        ({"policy.path": "/nowhere"}, "config.policy.path='/nowhere': .*not a checkpoint folder"),
        ({"mixing.mixup": 0.5}, "config.mixing.mixup=0.5: .*own label; leave it at 0.0"),
        ({"mixing.label_smoothing": 0.1}, "config.mixing.label_smoothing=0.1"),
        ({"evaluation.sub_networks": ((2, 12, 1),)}, "a policy has none; leave it at"),
        ({"policy.peek_depth": 3}, "config.policy.peek_depth=3: the model has 2 blocks"),
        ({"data.image_size": 24}, r"config.data.image_size=\(24, 24\): .* set it to 16"),
        ({"model.token_granularities": ()}, "the model has no token_granularities"),
        ({"model.token_granularities": (4,)}, r"axes=\('tokens',\): the model has one choice on"),
    ],
)
def test_runs_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_task(run_config("policy_in1k", changes))


def test_the_model_that_is_chosen_for_is_a_classifier_from_a_folder_or_a_finished_run(tmp_path):
    """Not config.model, which has other sizes."""

    def task_for(name):
        return make_task(run_config("policy_in1k", {"policy.path": str(tmp_path / name)}))

    vit = ap.ViT(ap.ViTConfig(embed_dim=6, depth=1, num_heads=1, image_size=16, patch_size=8))
    bare = ap.AdaPerceiver(MODEL.config.replace(num_classes=None, output_feat_dim=4))
    for name, model, message in (
        ("vit", vit, "holds no AdaPerceiver but: ViT"),
        ("bare", bare, "the model has no classes"),
    ):
        ap.save_pretrained(model, random_params(model), tmp_path / name)
        with pytest.raises(ValueError, match=message):
            task_for(name)
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"has not left its model/ yet. .*tools/convert.py"):
        task_for("run")
    for place in ("weights", "run/model"):
        ap.save_pretrained(MODEL, FROZEN, tmp_path / place)
        task = task_for(place.partition("/")[0])
        assert task.frozen.config == MODEL.config
        assert task.grid.tokens == MODEL.config.token_granularities
        assert task.model.config == make().model.config
        assert task.num_classes == 5
        jax.tree.map(np.testing.assert_array_equal, task.constants()["frozen"], FROZEN)
