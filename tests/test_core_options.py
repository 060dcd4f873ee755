"""The softmax core's options against plain formulas: cap, sink, scale, dropout, spans, NaN, twice."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import masks
from tinyattn.attention._core import softmax
from tinyattn.attention._core.softmax import Spans
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

# Of what an optimising compiler could break: powers made of bits, floors, NaN behind a maximum, and runs.
optimised = pytest.mark.optimised

# For a formula to compare with, which need not be compiled as users do.
PLAINLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

B, N, K, H, VALUES = 2, 4, 2, 6, 3
LENGTHS = (9, 260)  # in one batch, and in blocks; under a causal mask in two parts


def draws(T, seed=0):
    rng = np.random.default_rng(seed)
    shapes = (B, T, N, H), (B, T, K, H), (B, T, K, VALUES), (B, T, N, VALUES)
    # NumPy's, as is whatever is done to them: JAX would compile a program for every operation.
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def plain(query, key, value, allowed, *, scale=None, cap=0.0, sink=None):
    key, value = (jnp.repeat(x, N // K, axis=2) for x in (key, value))
    s = (scale or 1 / math.sqrt(H)) * jnp.einsum("btnh,bsnh->bnts", query, key)
    if cap:
        s = cap * jnp.tanh(s / cap)
    powers = jnp.where(allowed, jnp.exp(s), 0.0)
    total = powers.sum(-1, keepdims=True)
    if sink is not None:
        total += jnp.exp(sink)[:, None, None]
    return jnp.einsum("bnts,bsni->btni", powers / jnp.where(total > 0, total, 1), value)


def same(function, other, *args, atol=2e-5):
    """Outputs and all gradients under one random weight."""

    def run(f, compiler_options=None):
        def both(*args):
            out, pull = jax.vjp(f, *args)
            weight = np.random.default_rng(9).standard_normal(out.shape).astype(np.float32)
            return out, pull(jnp.asarray(weight))

        return jax.jit(both, compiler_options=compiler_options)(*args)

    got, want = run(function), run(other, PLAINLY)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=atol, rtol=2e-5)


@optimised
@pytest.mark.parametrize("T", LENGTHS)
def test_cap_sink_and_scale_with_gradients(T):
    query, key, value, _ = draws(T)
    sink = np.array([-1.0, 0.0, 2.0, 0.5], np.float32)
    mask = masks.causal()
    options = {"cap": 1.5, "scale": 0.7}
    same(
        lambda q, k, v, s: softmax.attend(q, k, v, mask, sink=s, **options),
        lambda q, k, v, s: plain(q, k, v, np.tri(T, dtype=bool), sink=s, **options),
        *(query, key, value, sink),
    )


@optimised
def test_a_sink_far_below_is_none_and_far_above_takes_all():
    heads = draws(9)[:3]
    low, high = (np.full(N, score, np.float32) for score in (-1e4, 60.0))
    # Not jitted: two programs may round apart.
    none = softmax.attend(*heads, Mask())
    np.testing.assert_array_equal(softmax.attend(*heads, Mask(), sink=low), none)
    assert np.abs(softmax.attend(*heads, Mask(), sink=high)).max() < 1e-20


@pytest.mark.parametrize("T", LENGTHS)
def test_dropout_zeroes_a_share_and_its_gradient_is_that_of_the_mask_it_drew(T):
    query, key, value, _ = draws(T)
    rng = jax.random.PRNGKey(3)

    @jax.jit
    def drop(q, k, v, rng=rng):
        return softmax.attend(q, k, v, Mask(), dropout=0.25, rng=rng)

    # Equal scores and one-hot values show the mask that was drawn, key by key.
    ones = np.broadcast_to(np.eye(T, dtype=np.float32)[None, :, None], (B, T, K, T))
    shown = T * np.asarray(drop(0 * query, key, ones))
    kept = np.isclose(shown, 1 / 0.75, rtol=1e-5)
    assert (kept | (np.abs(shown) < 1e-6)).all()
    tolerance = 4 * math.sqrt(0.75 * 0.25 / kept.size)
    assert abs(kept.mean() - 0.75) < tolerance
    keep = kept.transpose(0, 2, 1, 3)  # [B, N, T, S]

    def masked(q, k, v):
        k, v = (jnp.repeat(x, N // K, axis=2) for x in (k, v))
        p = jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k) / math.sqrt(H), axis=-1)
        return jnp.einsum("bnts,bsni->btni", jnp.where(keep, p / 0.75, 0.0), v)

    same(drop, masked, query, key, value)
    drawn, other = (drop(query, key, value, jax.random.PRNGKey(seed)) for seed in (3, 4))
    assert np.abs(np.asarray(drawn) - other).max() > 0.1
    without, plainly = (
        jax.jit(functools.partial(softmax.attend, mask=Mask(), dropout=share))(query, key, value)
        for share in (0.25, 0.0)
    )
    np.testing.assert_array_equal(without, plainly)


@dataclasses.dataclass(frozen=True)
class Below:
    """Keys from `first` on that do not lie among the first two."""

    first: int = 2

    def __call__(self, rows, columns):
        return jnp.broadcast_to(columns >= self.first, (rows.shape[0], columns.shape[0]))


@optimised
@pytest.mark.parametrize("T", LENGTHS)
@pytest.mark.parametrize("each", [False, True])
def test_spans_show_a_block_its_own_keys_only(T, each):
    """The first two keys for all, and a run of seven around each block of four queries; ends stick out."""
    query, key, value, _ = draws(T)
    blocks = -(-T // 4)
    starts = 4 * np.arange(blocks, dtype=np.int32) - 2
    if each:  # other runs for each example and each key head
        starts = starts + np.arange(B * K, dtype=np.int32).reshape(B, K, 1)
    starts = np.broadcast_to(starts, (B, K, blocks) if each else (1, 1, blocks))[..., None]
    spans = (
        Spans(jnp.zeros((1, 1, blocks, 1), jnp.int32), 2),
        Spans(jnp.asarray(starts), 7, Below()),
    )
    rows = np.arange(T) // 4
    own = starts[:, :, rows, 0][..., None]  # [B, K, T, 1]
    columns = np.arange(T)
    allowed = ((columns >= own) & (columns < own + 7)) | (columns < 2)
    allowed = np.repeat(allowed, N // K, axis=1) if each else allowed
    valid = np.arange(T)[None] < np.array([[T - 1], [T]])
    mask = masks.padding(valid)
    allowed = allowed & valid[:, None, None]
    same(
        lambda q, k, v, s: softmax.attend(q, k, v, mask, sink=s, spans=spans, block=4),
        lambda q, k, v, s: plain(q, k, v, allowed, sink=s),
        *(query, key, value, np.array([-1.0, 0.0, 2.0, 0.5], np.float32)),
    )


@optimised
@pytest.mark.parametrize("T", LENGTHS)
def test_nan_stays_behind_the_mask(T):
    """A token that is NaN is seen by itself and by what comes later, in outputs and in gradients."""
    query, key, value, weight = draws(T)
    dirty, early = [key.copy(), value.copy()], weight.copy()
    for x in dirty:
        x[0, 5] = np.nan
    early[0, 5:] = 0.0

    @functools.partial(jax.jit, static_argnums=0)
    def graded(how, key, value, weight, valid=None):
        mask = how if valid is None else how & masks.padding(valid)
        out, pull = jax.vjp(lambda *x: softmax.attend(*x, mask), query, key, value)
        return out, pull(weight)

    def run(*args):
        return jax.tree.map(np.asarray, graded(masks.causal(), *args))

    (clean, _), (out, _) = run(key, value, weight), run(*dirty, weight)
    np.testing.assert_array_equal(out[0, :5], clean[0, :5])
    np.testing.assert_array_equal(out[1], clean[1])
    assert np.isnan(out[0, 5:]).all()
    # Padding hides it from everybody.
    valid = np.ones((B, T), bool)
    valid[0, 5] = False
    for a, b in zip(
        *(jax.tree.leaves(graded(Mask(), *given, early, valid)) for given in ((key, value), dirty)),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("T", LENGTHS)
def test_differentiable_twice(T):
    """By a gradient of the gradient, and by forward mode over it, as Hessian-vector products take it."""
    query, key, value, weight = draws(T)
    mask = masks.causal()

    def curvature(attend):
        def slope(q):
            return jax.grad(lambda q: (jnp.square(attend(q, key, value)) * weight).sum())(q)

        def run(q):
            forward = jax.jvp(slope, (q,), (query,))[1]
            return jax.grad(lambda q: (slope(q) * query).sum())(q), forward

        return jax.jit(run)(query)

    got = curvature(lambda q, k, v: softmax.attend(q, k, v, mask))
    want, _ = curvature(lambda q, k, v: plain(q, k, v, np.tri(T, dtype=bool)))
    assert np.abs(want).max() > 0.1
    for way in got:
        np.testing.assert_allclose(way, want, atol=1e-4 * np.abs(want).max(), rtol=1e-4)


def test_forward_mode_is_refused_and_the_remedy_named():
    query, key, value, _ = draws(9)

    def attend(query):
        return softmax.attend(query, key, value, Mask())

    for forward in (lambda: jax.jvp(attend, (query,), (query,)), lambda: jax.jacfwd(attend)(query)):
        with pytest.raises(TypeError, match="over which forward mode works"):
            forward()
    with pytest.raises(TypeError, match="custom_vjp"):
        jax.jvp(jax.jit(attend), (query,), (query,))


def test_a_negative_block_is_refused():
    with pytest.raises(ValueError, match="block=-1 must be positive, or 0"):
        dense.Config(block=-1)


def test_double_precision_is_kept(x64):
    query, key, value, _ = (np.asarray(x, np.float64) for x in draws(150))
    out = jax.jit(functools.partial(softmax.attend, mask=masks.causal()))(query, key, value)
    want = jax.jit(plain)(query, key, value, np.tri(150, dtype=bool))
    assert out.dtype == jnp.float64
    np.testing.assert_allclose(out, want, atol=1e-13)
