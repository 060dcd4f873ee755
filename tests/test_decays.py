"""Decay keeps its digits where a strong one has gone before: in chunks, and as a bias of scores."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import masks
from tinyattn.attention.full import _forget
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


@pytest.mark.parametrize(
    ("form", "backend"), [("chunked", "cpu"), ("chunked", "gpu"), ("parallel", "cpu")]
)
def test_a_strong_decay_takes_no_digits_from_those_after_it(form, backend, monkeypatch):
    """Chunks have sums of their own on a CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
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


@pytest.mark.parametrize("segments", [False, True])
def test_forget_gates_lose_no_digits_after_a_strong_decay(segments):
    """Gates that add up to -30,000, and then ones near 1; in parallel, and for a token that is decoded."""
    length = 600
    forget = np.random.default_rng(1).normal(2.0, 1.0, (1, length, N)).astype(np.float32)
    forget[:, 5:500] = -60.0
    logs = np.cumsum(-np.logaddexp(0, -forget[0].astype(np.float64)), axis=0).T
    want = logs[:, :, None] - logs[:, None]
    mask = masks.causal() & masks.padding(np.ones((1, length), bool))
    if segments:
        mask &= masks.segments(np.zeros((1, length), np.int32))
    got = jax.jit(lambda x: _forget.bias(x, mask).dense(N, length, length))(forget)[0]
    seen = np.tril(np.ones((length, length), bool))
    np.testing.assert_allclose(got[:, seen], want[:, seen], rtol=2e-6, atol=2e-7)
    step = jax.jit(lambda x: _forget.cached(_forget.log_gates(x)).dense(N, 1, length))(forget)[0]
    np.testing.assert_allclose(step[:, 0], want[:, -1], rtol=2e-6, atol=2e-7)
