"""Masks that are learned, through an estimator: their gradients, noise, penalty and what is stored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemes import RNG, P, gradients, scheme

from tinyattn import weights
from tinyattn.weights import _masks, _pruned, presets

G = {"kernel": np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)}


def test_through_is_the_hard_mask_in_value_and_the_scores_in_gradient():
    scores = jnp.array([0.3, -0.2, 0.0, 2.0])
    hard = jnp.array([1.0, 0.0, 0.0, 1.0])
    np.testing.assert_array_equal(_masks.through(scores, hard), hard)
    dy = jnp.array([3.0, -4.0, 5.0, 0.5])
    got = jax.vjp(_masks.through, scores, hard)[1](dy)
    np.testing.assert_array_equal(got, [dy, jnp.zeros(4)])


def test_piggyback_masks_the_base_by_the_sign_of_scores():
    theta = scheme(presets.piggyback(leaves="kernel$")).init(RNG, P)
    np.testing.assert_array_equal(weights.fold(theta)["kernel"], P["kernel"])
    grad = gradients(theta, G)["kernel"].terms[0].d.scores
    np.testing.assert_allclose(grad, G["kernel"] * P["kernel"], rtol=1e-6)
    scores = np.asarray(G["kernel"]).copy()
    moved = jax.tree.map(lambda x: scores if x.shape == (5, 3) else x, weights.partition(theta)[0])
    built = weights.fold(weights.combine(moved, weights.partition(theta)[1]))["kernel"]
    np.testing.assert_array_equal(built, np.where(scores > 0, P["kernel"], 0))


def stable(scores, count):
    """Which are the best, by a stable sort."""
    flat = np.asarray(scores, np.float32).ravel()
    wanted = np.zeros(flat.size, bool)
    wanted[np.argsort(-flat, kind="stable")[:count]] = True
    return wanted.reshape(scores.shape)


BEST = jax.jit(_masks.top)


# 60 and 96: counted in two ways.
@pytest.mark.parametrize("shape", [(6, 10), (4, 24)])
def test_the_best_are_those_of_a_stable_sort(shape):
    """Also of equal scores, of both zeros, of infinities, of near ones, and in half precision."""
    normal = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    near = np.float32(1) + np.arange(normal.size, dtype=np.float32)[::-1].reshape(shape) * 2**-23
    infinite = np.where(normal > 1, np.inf, np.where(normal < -1, -np.inf, normal))
    zeros = np.where(normal > 0, 0.0, -0.0).astype(np.float32)
    same, half = np.full(shape, -2.5, np.float32), normal.astype(jnp.bfloat16)
    for scores in (normal, -near, near, np.round(normal), infinite, zeros, same, half):
        for count in (0, 1, 20, 31, normal.size - 1, normal.size):
            np.testing.assert_array_equal(BEST(scores, count), stable(scores, count))


def test_the_best_of_rows_side_by_side():
    """Rows end their searches at different bits, and some have ties to break."""
    normal = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    rows = normal * np.float32([1e-6, 1, 1e4, 1, 0])[:, None]
    rows[3] = np.round(rows[3])
    for zeros in (1, 40, 63):
        want = [stable(row, 64 - zeros) for row in rows]
        np.testing.assert_array_equal(_pruned.best(jnp.asarray(rows), zeros), want)


def test_a_supermask_keeps_its_best_scores_and_is_stored_as_bits():
    theta = scheme(presets.supermask(0.4, leaves="kernel$")).init(RNG, P)
    term = theta["kernel"].terms[0]
    best = np.sort(np.asarray(term.d.scores).ravel())[-6:]
    want = np.where(np.asarray(term.d.scores) >= best[0], term.v.value, 0)
    np.testing.assert_allclose(weights.fold(theta)["kernel"], want, rtol=1e-6)
    assert (want != 0).sum() == 6
    np.testing.assert_array_equal(_masks.top(jnp.zeros((2, 3)), 4).ravel(), [1, 1, 1, 1, 0, 0])
    # 15 numbers of V, and 15 scores; of them a file has 15 bits, and V's four words.
    assert weights.sizes(theta) == (30, 15, 2 + 16)


def hard_concrete(cost=0.01):
    return scheme(presets.diff_pruning(cost, start=0.5, leaves="kernel$"))


def test_noise_is_redrawn_each_step_and_neutral_when_settled():
    parts = hard_concrete()
    theta = parts.init(RNG, P)
    steps = [parts.update(theta, step) for step in (0, 1, 1)]
    noises = [x["kernel"].terms[0].d.noise.value for x in steps]
    assert not np.array_equal(noises[0], noises[1])
    np.testing.assert_array_equal(noises[1], noises[2])
    # Logistic: half of it within +-log 3.
    large = parts.init(RNG, {"kernel": jnp.ones((100, 90))})
    noise = parts.update(large, 3)["kernel"].terms[0].d.noise.value
    assert (np.abs(noise) < np.log(3)).mean() == pytest.approx(0.5, abs=0.02)
    settled = [weights.settle(x) for x in (theta, steps[1])]
    for x in settled:
        np.testing.assert_array_equal(x["kernel"].terms[0].d.noise.value, 0)
    assert weights.sizes(steps[1]) == weights.sizes(theta)
    # Without noise: (sigmoid(s / beta) (zeta - gamma) + gamma), cut to [0, 1].
    z = weights.fold({"d": settled[0]["kernel"].terms[0].d})["d"]
    want = np.clip(1.2 / (1 + np.exp(-0.5 * 1.5)) - 0.1, 0, 1)
    np.testing.assert_allclose(z, want, rtol=1e-6)


def test_the_penalty_is_the_expected_number_of_open_places():
    theta = hard_concrete(0.01).init(RNG, P)
    shift = 2 / 3 * np.log(0.1 / 1.1)
    open_share = 1 / (1 + np.exp(-(0.5 - shift)))
    assert float(weights.penalty(theta)) == pytest.approx(0.01 * 15 * open_share, rel=1e-5)
    trainable, rest = weights.partition(theta)
    grad = jax.grad(lambda t: weights.penalty(weights.combine(t, rest)))(trainable)["kernel"].terms[
        0
    ]
    np.testing.assert_allclose(grad.d.scores, 0.01 * open_share * (1 - open_share), rtol=1e-5)
    np.testing.assert_array_equal(grad.v, 0)
    assert weights.penalty(scheme(presets.lora(1, leaves="kernel$")).init(RNG, P)) == 0
    # It is the share of draws above 0.
    u = np.random.default_rng(0).uniform(size=200_000)
    s = 1 / (1 + np.exp(-(np.log(u) - np.log(1 - u) + 0.5) * 1.5)) * 1.2 - 0.1
    assert (s > 0).mean() == pytest.approx(open_share, abs=0.005)
