"""What must hold of every configuration: prefixes, widths, readouts, loops, folding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import adaperceiver_jax as ap
from adaperceiver_jax.models.attention import IMPLEMENTATIONS
from adaperceiver_jax.models.latent_stream import run_blocks
from adaperceiver_jax.models.rope import make_rope
from adaperceiver_jax.models.write_head import WriteHead
from tests.models.test_layers import filled
from tests.small_models import TINY, model_and_params, random_images, run, tiny

CLOSE = dict(rtol=1e-5, atol=1e-5)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def latents(model, params, images, num_tokens, depth):
    """The latents (B, N, D) after `depth` blocks."""

    def last(module, images):
        run = module.make_run(num_tokens)
        return run_blocks(module, module.read(module.embed_once(images), run), run, depth)[0]

    return model.apply({"params": params}, images, method=last)


@pytest.mark.quick
def test_the_first_t_latents_are_those_of_a_run_with_t_latents_cut_or_masked():
    model, params = model_and_params(4, block_mask="block", depth=2)
    c, images = model.config, random_images(model.config)
    wholes = []
    for attention in IMPLEMENTATIONS:
        model = model.clone(attention=attention)
        wholes.append(latents(model, params, images, c.max_latent_tokens, c.depth))
        for t in c.token_granularities[1:3]:
            alone = latents(model, params, images, t, c.depth)
            np.testing.assert_allclose(wholes[-1][:, :t], alone, **CLOSE)
    np.testing.assert_allclose(*wholes, **CLOSE)


def test_the_references_full_attention_ignores_the_mask():
    model, params = model_and_params(2, block_mask="block", attn_layer="full", num_classes=5)
    images = random_images(model.config)
    unmasked = model.clone(config=model.config.replace(block_mask="none"))
    ours, want = (run(m, params, images).logits for m in (model, unmasked))
    np.testing.assert_array_equal(ours, want)
    masked = model.clone(config=model.config.replace(attn_layer="flex"))
    assert len(masked.config.token_granularities) > 1
    assert np.abs(run(masked, params, images).logits - want).max() > 1e-4


@pytest.mark.parametrize(
    ("seed", "bias", "dtype", "weights"),
    [
        (0, True, "float32", "float32"),
        (1, False, "float32", "bfloat16"),
        (2, True, "bfloat16", "float32"),
    ],
)
def test_a_folded_write_equals_an_unfolded_one(seed, bias, dtype, weights):
    rng = np.random.default_rng(seed)
    heads, head_dim = int(rng.integers(1, 5)), 2 * int(rng.integers(1, 5))
    dim = heads * head_dim
    head = WriteHead(dim, heads, qkv_bias=bias, proj_bias=bias, dtype=dtype)
    rope = make_rope(7, head_dim, 100, float(rng.uniform(0.5, 2)))
    mean = [[[0], [1], [5], [-5], [20], [0], [2]]]  # must cancel, when rounded, too
    z = (rng.standard_normal((2, 7, dim)) + mean).astype(np.float32)
    output = rng.standard_normal(dim).astype(np.float32)

    def plain(head, visible):
        outputs = jnp.broadcast_to(output, (2, 1, dim))
        k, v = head.keys_values(z, rope)
        return head(outputs, head.queries(outputs), k, v, visible)

    def folded(head, visible):
        return head.write_one(output, head.fold(output, rope), z, visible)

    params = {"params": jax.tree.map(lambda x: x.astype(weights), filled(head, None, method=plain))}
    write = jax.jit(functools.partial(head.apply, method=folded))
    exact = jax.jit(functools.partial(head.clone(dtype=jnp.float32).apply, method=plain))
    want = exact(params, None)
    close = CLOSE if dtype == "float32" else dict(rtol=0, atol=0.03 * np.abs(want).max())
    np.testing.assert_allclose(write(params, None), want, **close)
    visible = np.arange(7) < np.array([[2], [5]])
    many = write(params, visible)  # (B, R, D)
    for i, seen in enumerate(visible):
        want = exact(params, seen)[:, 0]
        np.testing.assert_allclose(many[:, i], want, **close)


VIT = ap.ViTConfig(embed_dim=12, depth=2, num_heads=2, image_size=8, patch_size=4, num_classes=3)


@pytest.mark.parametrize(
    ("model", "depth"),
    [
        (ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY)), {}),
        (ap.AdaPerceiver(ap.AdaPerceiverConfig(**TINY)), {"depth": 2}),
        (ap.ViT(VIT), {}),
    ],
)
def test_remat_is_there_at_every_depth(model, depth):
    images, shapes = random_images(model.config), ap.param_shapes(model)
    for remat in (False, True):
        apply = functools.partial(model.clone(remat=remat).apply, images=images, **depth)
        assert ("remat" in str(jax.make_jaxpr(apply)({"params": shapes}))) is remat


@pytest.mark.slow
def test_remat_changes_no_gradient_where_channels_and_samples_are_dropped():
    model, params, images = tiny(drop_path=0.2, proj_drop=0.1)

    def loss(params, remat):
        noise = dict(train=True, rngs={"dropout": jax.random.key(0)})
        out = model.clone(remat=remat).apply({"params": params}, images, **noise)
        return jnp.square(out.logits).mean()

    compute = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    plain, again = (jax.tree.leaves(compute(params, remat)) for remat in (False, True))
    for ours, want in zip(again, plain, strict=True):
        np.testing.assert_allclose(ours, want, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_gradients_through_a_smaller_depth_are_those_of_the_extracted_model():
    model, params, images = tiny(layer_scale=None)
    small, small_params = ap.extract(model, params, depth=2)

    def loss(params, model, depth):
        return jnp.square(model.apply({"params": params}, images, depth=depth).logits).mean()

    compute = jax.jit(jax.grad(loss), static_argnums=(1, 2))
    ours, want = compute(params, model, 2), compute(small_params, small, None)
    assert all((leaf[2] == 0).all() for leaf in jax.tree.leaves(ours["blocks"]))
    ours["blocks"] = jax.tree.map(lambda leaf: leaf[:2], ours["blocks"])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(want))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * largest)


def test_many_granularities_do_not_make_many_attentions():
    model, params, images = tiny(token_granularities=tuple(range(1, 18)), max_latent_tokens=17)
    cut = run(model, params, images).logits
    masked = run(model.clone(attention="masked"), params, images).logits
    np.testing.assert_array_equal(cut, masked)  # the very same program


def test_token_granularities_of_one_call_replace_the_configs():
    model, params, images = tiny()
    other = model.clone(config=model.config.replace(token_granularities=(5, 16)))
    ours = run(model, params, images, token_granularities=(5, 16)).logits
    np.testing.assert_allclose(ours, run(other, params, images).logits, **CLOSE)
    assert np.abs(ours - run(model, params, images).logits).max() > 1e-3
    out = run(model, params, images, "readouts", token_granularities=(5, 16, 32))
    assert out.token_logits.shape == (3, 2, 5)
    want = run(model, params, images, num_tokens=32, token_granularities=(5, 16, 32)).logits
    np.testing.assert_allclose(out.token_logits[-1], want, **CLOSE)


def test_bfloat16_compute_keeps_float32_parameters_and_outputs_and_stays_near():
    model, params, images = tiny(output_feat_dim=6)
    half = model.clone(dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(ap.param_shapes(half))} == {np.dtype("float32")}
    read = np.array([2, 16, 4])
    exact = run(model, params, images, "readouts", readout_tokens=read)
    rounded = run(half, params, images, "readouts", readout_tokens=read)
    for ours, want in zip(jax.tree.leaves(rounded), jax.tree.leaves(exact), strict=True):
        assert ours.dtype == jnp.float32
        assert np.abs(ours - want).max() < 0.05 * np.abs(want).max()  # bf16 keeps 8 bits
        assert np.abs(ours - want).max() > 1e-5
        # The last layer keeps its float32 sums.
        assert (ours != ours.astype(jnp.bfloat16).astype(jnp.float32)).any()


def test_layer_scale_of_1e_5_survives_bfloat16():
    model, params, images = tiny()
    assert model.config.layer_scale == 1e-5
    model = model.clone(dtype=jnp.bfloat16)
    initial = {"gamma": np.full((3, 24), 1e-5, np.float32)}
    params["blocks"] |= {"ls1": initial, "ls2": initial}
    before = latents(model, params, images, 16, 1)
    after = latents(model, params, images, 16, 3)
    assert np.abs(after - before).max() > 0  # lost if the stream itself were bfloat16
