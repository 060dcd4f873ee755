"""Biases of scores: ALiBi and T5's buckets against the papers, and through the softmax core."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, biases, masks, model
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

B, N, H = 2, 4, 6


def test_alibi_slopes_are_the_papers():
    np.testing.assert_allclose(biases.slopes(8), 0.5 ** np.arange(1, 9))
    # Twelve heads: those of eight, then every second of sixteen's.
    sixteen = 2 ** (-0.5 * np.arange(1, 17))
    np.testing.assert_allclose(
        biases.slopes(12), [*0.5 ** np.arange(1, 9), *sixteen[::2][:4]], rtol=1e-6
    )


def test_alibi_falls_with_the_distance():
    table = biases.Linear(jnp.array([0.5, 2.0])).dense(2, 3, 4)
    np.testing.assert_array_equal(
        table[0], -0.5 * np.array([[0, 1, 2, 3], [1, 0, 1, 2], [2, 1, 0, 1]])
    )
    np.testing.assert_array_equal(table[1], 4 * table[0])


def test_buckets_are_those_of_t5():
    """Eight of sixteen buckets for each side: four exact ones, then up to 128 by their logarithm."""
    offsets = jnp.array([0, -1, -3, -4, -9, -10, -127, -128, -5000, 1, 3, 4, 127, 5000])
    got = biases.buckets(offsets, 16, 128, causal=False)
    np.testing.assert_array_equal(got, [0, 1, 3, 4, 4, 5, 7, 7, 7, 9, 11, 12, 15, 15])
    behind = biases.buckets(offsets, 8, 128, causal=True)
    np.testing.assert_array_equal(behind, [0, 1, 3, 4, 4, 5, 7, 7, 7, 0, 0, 0, 0, 0])


def test_too_few_buckets_are_refused():
    with pytest.raises(ValueError, match="give at least 4 buckets"):
        biases.buckets(jnp.arange(3), 3, 128, causal=False)
    with pytest.raises(ValueError, match="a distance above 8"):
        biases.buckets(jnp.arange(3), 32, 8, causal=False)


def test_decay_is_the_difference_of_sums_of_each_example():
    query = jnp.array([[[0.0, 1.0], [2.0, 5.0]], [[-1.0, 0.0], [0.0, 0.0]]])  # [B, T, N]
    key = jnp.array([[[3.0, 0.0]], [[1.0, 1.0]]])
    table = biases.Decay(query, key).dense(2, 2, 1)
    np.testing.assert_array_equal(table[..., 0], [[[-3, -1], [1, 5]], [[-2, -1], [-1, -1]]])


def test_a_sum_adds_its_parts():
    parts = biases.Linear(jnp.ones(2)), biases.Decay(jnp.ones((1, 3, 2)), jnp.zeros((1, 3, 2)))
    table = biases.Sum(parts).dense(2, 3, 3)
    np.testing.assert_array_equal(table[0, 0], [[1, 0, -1], [0, 1, 0], [-1, 0, 1]])


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def made(kind, T):
    if kind == "alibi":
        return biases.Linear(np.array([0.1, 0.5, 0.02, 1.0], np.float32))
    if kind == "decay + alibi":
        return biases.Sum((biases.Decay(normal(8, B, T, N), normal(9, B, T, N)), made("alibi", T)))
    return biases.Relative(normal(7, N, 8), farthest=20)


@pytest.mark.parametrize("T", [13, 260])
@pytest.mark.parametrize("kind", ["alibi", "relative", "decay + alibi"])
def test_core_equals_reference_with_gradients_of_the_bias(kind, T):
    """In one batch and in two parts; two query heads a key head, causal, with padding."""
    query, weight = normal(0, B, T, N, H), normal(3, B, T, N, H)
    key, value = normal(1, B, T, 2, H), normal(2, B, T, 2, H)
    valid = np.arange(T)[None] < np.array([[T - 4], [T]])
    mask = masks.causal() & masks.padding(valid)
    # A softmax alone does not see what moves all scores of a query alike; beside a sink it does.
    config = dense.Config(num_heads=N, num_kv_heads=2, sink="one")

    def loss(function, bias, *heads):
        out = function(config, *heads, mask, bias)
        return (out * weight).sum(), out

    def both(function):
        graded = jax.grad(functools.partial(loss, function), (0, 1, 2, 3), has_aux=True)
        return jax.jit(graded)(made(kind, T), query, key, value)

    got, want = both(dense.attend), both(dense.reference)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(got[0]), jax.tree.leaves(want[0]), strict=True):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=3e-4 * np.abs(b).max(), rtol=1e-4)


@functools.cache
def moved_tokens(positions, scan):
    """Gradients of an encoder, and its outputs before and after its tokens move."""
    ids = np.array([[1, 2, 3, 4, 5, 6, 7]])
    both = np.concatenate([ids, np.roll(ids, 1, axis=1)])
    sizes = {"width": 8, "ffn_width": 8, "scan": scan, "num_layers": 1 + scan}
    spec = model.spec(inputs="tokens", vocab_size=9, positions=positions, **sizes)
    encoder = model.build(spec)

    def first(params):
        outs = encoder.apply(params, both)
        return outs[0, 0], outs

    @jax.jit
    def run(params):
        if positions == "none":
            return None, *first(params)[1]
        grads, outs = jax.grad(first, has_aux=True)(params)
        return grads, *outs

    draw, shapes = (
        np.random.default_rng(0),
        jax.eval_shape(encoder.init, jax.random.PRNGKey(0), ids),
    )
    params = jax.tree.map(lambda x: 0.4 * draw.standard_normal(x.shape).astype(x.dtype), shapes)
    return jax.tree.map(np.asarray, run(params))


@pytest.mark.parametrize("positions", ["alibi", "relative"])
@pytest.mark.parametrize("scan", [False, True])
def test_the_encoder_knows_the_order_of_its_tokens(positions, scan):
    """Moving one token to the other end changes nothing without positions, and does with them."""
    _, before, after = moved_tokens("none", scan)
    np.testing.assert_allclose(before, after, atol=1e-6)
    grads, before, after = moved_tokens(positions, scan)
    assert np.abs(before - after).max() > 1e-5
    if positions == "relative":
        assert grads["params"]["relative"].shape == (4, 32)
        assert np.abs(grads["params"]["relative"]).max() > 1e-6


def test_a_variant_without_bias_is_refused():
    with pytest.raises(ValueError, match=r"positions='alibi' adds a bias.*'linear' has not"):
        model.build(model.spec(positions="alibi", attention=attention.spec("linear")))
    module, config = attention.build(attention.spec("window"))
    x = jnp.ones((1, 5, 8))
    with pytest.raises(ValueError, match="cannot honour bias"):
        module.Attention(config).init(
            jax.random.PRNGKey(0), x, mask=Mask(), bias=biases.Linear(jnp.ones(4))
        )
