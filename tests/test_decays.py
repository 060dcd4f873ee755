"""Decay in the chunks of linear attention keeps its digits where a strong one has gone before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn.attention.recurrent import _chunks

B, T, N, P, H, C = 1, 21, 2, 3, 4, 8


def given():
    rng = np.random.default_rng(0)
    heads = [rng.random(shape) for shape in ((B, T, N, P), (B, T, N, P), (B, T, N, H))]
    logs = -0.05 * rng.random((B, T, N))
    # All is forgotten early in the first two chunks, and little after that.
    logs[:, [1, 9, 10]] = -3e4
    return heads, logs


def exact(heads, logs):
    """The recurrence in double precision."""
    query, key, value = heads
    state, out = np.zeros((B, N, P, H)), np.zeros((B, T, N, H))
    for t in range(T):
        own = key[:, t, :, :, None] * value[:, t, :, None]
        state = np.exp(logs[:, t])[..., None, None] * state + own
        out[:, t] = np.einsum("bnp,bnpi->bni", query[:, t], state)
    return out


@pytest.mark.parametrize("form", ["chunked", "parallel"])
def test_a_strong_decay_takes_no_digits_from_those_after_it(form):
    heads, logs = given()
    kwargs = {"chunk": C} if form == "chunked" else {}
    singles = [jnp.asarray(x, jnp.float32) for x in (*heads, logs)]
    got = jax.jit(lambda *x: getattr(_chunks, form)(*x, **kwargs))(*singles)
    np.testing.assert_allclose(got, exact(heads, logs), rtol=2e-6)


def test_rates_of_heads_do_not_wear_off_along_a_chunk():
    """-30.1 a token adds up to -240 in a chunk; odd tokens read what their neighbours wrote."""
    heads, _ = given()
    heads[1][:, 1::2] = 0.0
    rates = np.array([-30.1, -1e-3])
    singles = [jnp.asarray(x, jnp.float32) for x in (*heads, rates)]
    got = jax.jit(lambda *x: _chunks.chunked(*x, chunk=C))(*singles)
    want = exact(heads, np.broadcast_to(rates, (B, T, N)))
    np.testing.assert_allclose(got, want, rtol=2e-6)
