"""The softmax core: exact attention in blocks that stay in cache, with a gradient of its own.

Nothing larger than a block of scores is held between forward and backward: the backward pass recomputes
the probabilities from the saved logarithm of their sum, and needs no sum over keys of its own, since
Σ_s p_s dp_s is dout·out. Source: Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135,
algorithms 1 and 4, without the blocks of keys.

Within the core tokens are the last axis, [..., H, T], so that scores are [..., S, T] and both sums over
keys and products with them run along whole vectors.
"""

import functools
import math

import jax
import jax.numpy as jnp

from tinyattn.masks import Mask

# Stands for minus infinity where a difference of two of them must not be NaN.
FLOOR = -1e30
# On a CPU, up to this many keys all examples go in one batched block; above, one example at a time.
SHORT = 128
# ln(2)^k / k!
TAYLOR = tuple(math.log(2) ** k / math.factorial(k) for k in range(7))
# Queries a block above SHORT: scores of a few heads then fit the second-level cache.
BLOCK = 128


def streams(S: int) -> bool:
    """Whether `attend` goes block by block: a GPU has no use for work in small pieces."""
    return S > SHORT and jax.default_backend() == "cpu"


def plan(T: int, S: int) -> tuple[int, int]:
    """Blocks of queries and their length: equal ones, so that the last is not mostly padding."""
    blocks = -(-T // BLOCK) if streams(S) else 1
    return blocks, -(-T // blocks)


def pairs(T: int, S: int) -> int:
    """Query-key pairs that `attend` executes, the padding of the last block included."""
    blocks, C = plan(T, S)
    return blocks * C * S


def attend(query, key, value, mask: Mask):
    """softmax(query key^T / sqrt(H)) value over allowed keys; see `dense` for the shapes."""
    T, S = query.shape[1], key.shape[1]
    if not streams(S):
        return attend_block(query, key, value, mask.dense(T, S) if mask.kinds else None)
    B, _, N, H = query.shape
    K = key.shape[2]
    blocks, C = plan(T, S)
    # One example's key/value heads at a time, and their queries block by block.
    padded = jnp.pad(query, ((0, 0), (0, blocks * C - T), (0, 0), (0, 0)))
    queries = padded.reshape(B, blocks, C, K, N // K, H).transpose(0, 1, 3, 5, 4, 2)
    queries = queries.reshape(B, blocks, K, H, (N // K) * C)
    out = _streamed(queries, _last(key), _last(value), mask, C)
    out = out.reshape(B, blocks, K, H, N // K, C).transpose(0, 1, 5, 2, 4, 3)
    return out.reshape(B, blocks * C, N, H)[:, :T]


def attend_block(query, key, value, allowed=None):
    """One dense block: query [B, T, N, H], key and value [B, S, K, H], allowed bool [B or 1, T, S]."""
    B, T, N, H = query.shape
    K = key.shape[2]
    queries = query.reshape(B, T, K, N // K, H).transpose(0, 2, 4, 3, 1)
    queries = queries.reshape(B, K, H, (N // K) * T)
    if allowed is not None:
        allowed = _tiled(allowed, N // K)[:, None]
    out = _block(queries, _last(key), _last(value), allowed)
    return out.reshape(B, K, H, N // K, T).transpose(0, 4, 1, 3, 2).reshape(B, T, N, H)


def _last(x):
    """[B, S, K, H] to [B, K, H, S]."""
    return x.transpose(0, 2, 3, 1)


def _tiled(allowed, repeats: int):
    """bool [..., T, S] to [..., S, repeats * T], once for each query head of a key/value head."""
    return jnp.tile(allowed.swapaxes(-1, -2), repeats)


@jax.custom_jvp
def exp2(x):
    """2^x for x <= 0 in float32, to 2.4e-7 relative; less than 2^-126 is 2^-126.

    On a CPU three times as fast as XLA's own exponential, which costs as much as the products around
    it: round to an integer by adding 1.5 * 2^23, a polynomial for the rest (the Taylor series of 2^f
    to sixth order, |f| <= 1/2), and the integer put into the exponent's bits.
    """
    if jax.default_backend() != "cpu":
        return jnp.exp2(x)
    x = jnp.maximum(x, -126.0)
    # Through the bits and not by subtraction, which the compiler would cancel.
    whole = jax.lax.bitcast_convert_type(x + 12582912.0, jnp.int32) - 0x4B400000
    rest = x - whole.astype(jnp.float32)
    power = jnp.full_like(x, TAYLOR[-1])
    for coefficient in TAYLOR[-2::-1]:
        power = power * rest + coefficient
    return power * jax.lax.bitcast_convert_type((whole + 127) << 23, jnp.float32)


@exp2.defjvp
def _exp2_jvp(primals, tangents):
    y = exp2(*primals)
    return y, math.log(2) * y * tangents[0]


def _scores(query, key, allowed):
    """Scores in units of log 2, so that probabilities are powers of two."""
    scale = math.log2(math.e) / math.sqrt(key.shape[-2])
    query = query.astype(jnp.float32) * scale
    s = jnp.einsum("...hs,...ht->...st", key.astype(jnp.float32), query)
    return s if allowed is None else jnp.where(allowed, s, FLOOR)


def _powers(scores, shift, allowed):
    p = exp2(scores - shift)
    return p if allowed is None else jnp.where(allowed, p, 0.0)


def _forward(query, key, value, allowed):
    """(out [..., H, T], logarithm to base 2 of the sum of powers [..., 1, T])."""
    s = _scores(query, key, allowed)
    top = s.max(-2, keepdims=True)
    p = _powers(s, top, allowed)
    total = p.sum(-2, keepdims=True)
    total = jnp.where(total > 0, total, 1.0)
    out = jnp.einsum("...hs,...st->...ht", value.astype(jnp.float32), p)
    return (out / total).astype(query.dtype), top + jnp.log2(total)


def _backward(query, key, value, allowed, out, lse, dout):
    """Gradients of query, key and value, in float32."""
    p = _powers(_scores(query, key, allowed), lse, allowed)
    query, key, value, out, dout = (x.astype(jnp.float32) for x in (query, key, value, out, dout))
    scale = 1 / math.sqrt(key.shape[-2])
    dp = jnp.einsum("...hs,...ht->...st", value, dout)
    delta = (dout * out).sum(-2, keepdims=True)
    ds = p * (dp - delta)
    dquery = jnp.einsum("...hs,...st->...ht", key, ds) * scale
    dkey = jnp.einsum("...ht,...st->...hs", query * scale, ds)
    dvalue = jnp.einsum("...ht,...st->...hs", dout, p)
    return dquery, dkey, dvalue


@jax.custom_vjp
def _block(query, key, value, allowed):
    return _forward(query, key, value, allowed)[0]


def _block_fwd(query, key, value, allowed):
    out, lse = _forward(query, key, value, allowed)
    return out, (query, key, value, allowed, out, lse)


def _block_bwd(saved, dout):
    grads = _backward(*saved, dout)
    return *(g.astype(x.dtype) for g, x in zip(grads, saved, strict=False)), None


_block.defvjp(_block_fwd, _block_bwd)


def _allowed(mask: Mask, example, start, C: int, S: int, repeats: int):
    """The part of the mask that a block of one example needs, [1, S, repeats * C]; None is all."""
    if not mask.kinds:
        return None
    own = jax.tree.map(lambda x: x[jnp.minimum(example, x.shape[0] - 1)][None], mask)
    return _tiled(own.allowed(start + jnp.arange(C), jnp.arange(S), S), repeats)


def _per_example(function, mask: Mask, C: int, queries, key, carried):
    """Maps function(queries, key, value, carried, allowed) over examples; allowed(i) is block i's."""
    B, width = queries.shape[0], queries.shape[-1]

    def example(inputs):
        index, own, key, value, more = inputs

        def allowed(i):
            return _allowed(mask, index, i * C, C, key.shape[-1], width // C)

        return function(own, key, value, more, allowed)

    return jax.lax.map(example, (jnp.arange(B), queries, *key, carried))


def _stream_forward(queries, key, value, mask: Mask, C: int):
    def example(own, key, value, _, allowed):
        def block(inputs):
            i, query = inputs
            return _forward(query, key, value, allowed(i))

        return jax.lax.map(block, (jnp.arange(own.shape[0]), own))

    return _per_example(example, mask, C, queries, (key, value), ())


def _stream_backward(C: int, saved, dout):
    queries, key, value, mask, out, lse = saved

    def example(own, key, value, more, allowed):
        def block(sums, inputs):
            i, query, out, lse, dout = inputs
            dquery, *new = _backward(query, key, value, allowed(i), out, lse, dout)
            return jax.tree.map(jnp.add, sums, new), dquery.astype(query.dtype)

        zeros = [jnp.zeros(x.shape, jnp.float32) for x in (key, value)]
        sums, dquery = jax.lax.scan(block, zeros, (jnp.arange(own.shape[0]), own, *more))
        return dquery, *(s.astype(key.dtype) for s in sums)

    dqueries, dkey, dvalue = _per_example(example, mask, C, queries, (key, value), (out, lse, dout))
    return dqueries, dkey, dvalue, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _streamed(queries, key, value, mask: Mask, C: int):
    return _stream_forward(queries, key, value, mask, C)[0]


def _streamed_fwd(queries, key, value, mask: Mask, C: int):
    out, lse = _stream_forward(queries, key, value, mask, C)
    return out, (queries, key, value, mask, out, lse)


_streamed.defvjp(_streamed_fwd, _stream_backward)
