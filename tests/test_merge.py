"""Softmaxes over parts of the keys, merged into one: against the plain formula over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, masks
from tinyattn.attention._core import softmax

B, N, K, H = 2, 4, 2, 6


def draws(T):
    rng = np.random.default_rng(0)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
    return [2 * rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def parts_of_keys(T):
    """Causal masks of every third key and of the rest, and of both; example 1 has no first two keys."""
    third, kept = np.arange(T)[None] % 3 == 0, np.ones((B, T), bool)
    kept[1, :2] = False
    return [masks.causal() & masks.padding(keys & kept) for keys in (third, ~third, True)]


def merged(several, heads):
    return softmax.merge(softmax.attend(*heads, mask, return_lse=True) for mask in several)


def plain(mask, heads):
    """(out, logarithm of the sum [B, T, N]) over the whole table, and zeros where it has no pair."""
    T = heads[0].shape[1]
    query, key, value = heads[0], *(attention.repeat_heads(x, N) for x in heads[1:])
    allowed = mask.dense(T, T)[..., None]
    s = jnp.einsum("btnh,bsnh->btsn", query, key) / H**0.5
    powers = jnp.where(allowed, jnp.exp(s), 0.0)
    total = powers.sum(2)
    total = jnp.where(total > 0, total, 1.0)
    return jnp.einsum("btsn,bsnh->btnh", powers / total[:, :, None], value), jnp.log(total)


# In one batch, and in blocks of one head after the other.
@pytest.mark.parametrize("T", [9, 150])
def test_parts_of_the_keys_merge_into_one_softmax(T):
    """Rows see keys of both parts, of one, and of none; the gradient runs through the sums as well."""
    *heads, weight = draws(T)
    *several, whole = parts_of_keys(T)

    def run(function):
        def loss(heads):
            out = function(heads)
            return (out * weight).sum(), out

        compiled = jax.jit(jax.value_and_grad(loss, has_aux=True))
        return lambda heads: jax.tree.map(np.asarray, compiled(heads))

    ours = run(lambda heads: merged(several, heads))
    (_, out), grads = ours(heads)
    (_, want), want_grads = run(lambda heads: plain(whole, heads)[0])(heads)
    np.testing.assert_allclose(out, want, atol=1e-5, rtol=1e-5)
    for got, exact in zip(grads, want_grads, strict=True):
        np.testing.assert_allclose(got, exact, atol=2e-5, rtol=2e-5)
    assert not out[1, :2].any() and not grads[0][1, :2].any() and not grads[1][1, :2].any()
    # What is NaN in one part reaches those that may see it, and no bit of the others.
    dirty = [x.copy() for x in heads]
    for x in dirty[1:]:
        x[0, 5] = np.nan
    (_, spoilt), _ = ours(dirty)
    np.testing.assert_array_equal(spoilt[0, :5], out[0, :5])
    np.testing.assert_array_equal(spoilt[1], out[1])
    assert np.isnan(spoilt[0, 5:]).all()


def test_the_logarithm_of_the_sum_and_its_gradient():
    T = 9
    *heads, weight = draws(T)
    _, mask, _ = parts_of_keys(T)
    seen = np.asarray(mask.dense(T, T)).any(-1)

    def run(function):
        def loss(heads):
            lse = function(heads)
            return (jnp.where(seen[..., None], lse, 0.0) * weight[..., 0]).sum(), lse

        return jax.tree.map(np.asarray, jax.jit(jax.grad(loss, has_aux=True))(heads))

    grads, lse = run(lambda heads: softmax.attend(*heads, mask, return_lse=True)[1])
    exact_grads, exact = run(lambda heads: plain(mask, heads)[1])
    np.testing.assert_allclose(lse[seen], exact[seen], atol=1e-5)
    assert np.isfinite(lse).all() and (lse[~seen] < -1e29).all() and not seen.all()
    for got, want in zip(grads, exact_grads, strict=True):
        np.testing.assert_allclose(got, want, atol=2e-5, rtol=2e-5)
