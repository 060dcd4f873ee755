"""The softmax core: exact attention in blocks that stay in cache, with a gradient of its own.

Work is cut into items, one key/value head of one example with the M = N / K query heads that read it,
and an item's queries into blocks. Nothing larger than a block of scores is held between forward and
backward: the backward pass recomputes the probabilities from the saved logarithm of their sum, and needs
no sum over keys of its own, since Σ_s p_s dp_s is dout·out. A block sees all keys, or with `Spans` only
those that a sparse variant names, and the work of the others is never done. Where the mask is a band,
long queries go in parts that see only the keys that the band reaches. Softmaxes over parts of the keys
`merge` into one.

Scores are [keys, queries] and every product is asked for in the layout that runs fastest on a CPU. On a
GPU `vendor` takes over where it computes the same.

Source: Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135, algorithms 1 and 4, without
  the blocks of keys.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from tinyattn.attention._core import vendor
from tinyattn.attention._core.block import LOG2_E, Hidden, Spans, added, backward, block_of, forward
from tinyattn.attention._core.exp2 import exp2
from tinyattn.attention._core.layout import (
    Static,
    contain,
    keys_of,
    of_keys,
    over,
    poisoned,
    queries_of,
    tokens_of,
)
from tinyattn.attention._core.plan import behind as behind
from tinyattn.attention._core.plan import beside as beside
from tinyattn.attention._core.plan import pairs as pairs
from tinyattn.attention._core.plan import parts, plan
from tinyattn.attention._core.plan import streams as streams
from tinyattn.masks import Mask

# Logarithms of sums below this are of queries that see no key.
EMPTY = -1e29


def attend(
    query,
    key,
    value,
    mask: Mask,
    *,
    scale: float | None = None,
    cap: float = 0.0,
    bias=None,
    sink=None,
    dropout: float = 0.0,
    rng=None,
    spans: tuple[Spans, ...] = (),
    block: int = 0,
    return_lse: bool = False,
):
    """softmax(cap tanh(scale query·key / cap) + bias) value over the allowed keys, [B, T, N, I].

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H] where K divides N.
      value: [B, S, K, I]; or a multiple of K heads that divides N, so that some have a key in common.
      mask: A query that may see no key gives zeros.
      scale: None is 1 / sqrt(H).
      cap: Bound of the scores; 0 is none.
      bias: A `tinyattn.biases.Bias`.
      sink: [N], the score of a key that takes its share of the softmax and has no value.
      dropout: Share of the probabilities that is zeroed, the rest scaled up, where there is an `rng`.
      rng: None is evaluation.
      spans: The keys of each block of queries; () is all keys for all blocks.
      block: Most queries of a block (C); 0 lets the backend choose, which spans cannot.
      return_lse: Whether to return (out, lse), where lse is the logarithm of the sum of the exponentials,
        [B, T, N] in float32 or wider: what `merge` needs. Where a query may see no key it is below -1e29,
        and finite, so that no difference of two of them is NaN.

    Raises:
      TypeError: Forward mode alone. Over a gradient it works, as a gradient over a gradient does.
    """
    B, T, N, H = query.shape
    S, K = key.shape[1:3]
    M = N // K
    C = block if spans else plan(T, S, block)[1]
    static = Static(
        T=T,
        S=S,
        row=0,
        column=0,
        C=C,
        K=K,
        M=M,
        values=value.shape[2] // K,
        scale=1 / math.sqrt(H) if scale is None else scale,
        cap=cap,
        dropout=0.0 if rng is None else dropout,
        lengths=tuple(span.length for span in spans),
        allowed=tuple(span.allowed for span in spans),
    )
    value = value.reshape(B, S, K, -1)
    poison = None
    if spans:
        poison = poisoned(key, value)
    elif mask.kinds:
        key, value, poison = contain(key, value)
    # A mask may be of NumPy arrays, which an index inside a loop cannot read.
    mask = jax.tree.map(jnp.asarray, mask)
    asked = block or cap or static.dropout or return_lse or bias is not None or sink is not None
    plain = not asked and static.values == 1
    # A last block of less than C queries would count as more than the kernel executes.
    if plain and T % C == 0 and vendor.applies(query, key, value, mask, vendor.capability()):
        alone = Hidden(mask, None, (), None)

        def core(*heads):
            return _attend(static, *heads, None, None, alone)[0]

        return vendor.attend(core, static.scale, query, key, value, mask, poison)
    hidden = Hidden(mask, poison, tuple(span.starts for span in spans), rng)
    bias = None if bias is None else bias.per_item(B, K, M)
    sink = None if sink is None else jnp.broadcast_to(sink.reshape(K, M), (B, K, M))
    bias, sink = jax.tree.map(lambda x: x.reshape(B * K, *x.shape[2:]), (bias, sink))
    try:
        if spans:
            found = [_attend(static, query, key, value, bias, sink, hidden)]
        else:
            found = []
            for part in parts(T, S, mask):
                own, heads, shown = _cut(static, *part, block, (query, key, value), hidden)
                found.append(_attend(own, *heads, bias, sink, shown))
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "the softmax core has no forward mode (jax.jvp, jax.jacfwd): take jax.vjp, jax.grad or"
            " jax.jacrev, over which forward mode works, or differentiate the variant's `reference`"
        ) from error
    out, lse = found[0] if len(found) == 1 else map(_joined, zip(*found, strict=True))
    return (out, lse) if return_lse else out


def _joined(rows):
    return jnp.concatenate(rows, axis=1)


def _cut(static, rows, columns, block: int, heads, hidden):
    """One part: what decides its program, its queries, keys and values, and what has no gradient."""
    T, S = rows.stop - rows.start, columns.stop - columns.start
    own = {"T": T, "S": S, "row": rows.start, "column": columns.start}
    static = dataclasses.replace(static, C=plan(T, S, block)[1], **own)
    query, key, value = heads
    if hidden.poison is not None:
        hidden = hidden._replace(poison=hidden.poison[..., columns])
    if rows.start and hidden.rng is not None:
        hidden = hidden._replace(rng=jax.random.fold_in(hidden.rng, rows.start))
    return static, (query[:, rows], key[:, columns], value[:, columns]), hidden


def merge(parts) -> jax.Array:
    """One softmax from those over parts of the keys: Σ_i exp(lse_i - lse) out_i, [B, T, N, I].

    Args:
      parts: (out [B, T, N, I], lse [B, T, N]) of each, as `attend` returns them; no pair is in two.
        A query that sees no key in any of them gives zeros.
    """
    outs, lses = (jnp.stack(x) for x in zip(*parts, strict=True))
    # Of sums this small no difference is taken: with a fused multiply-add it may be of any size.
    empty = lses < EMPTY
    lses = jnp.where(empty, 0.0, lses)
    top = jax.lax.stop_gradient(jnp.where(empty, -jnp.inf, lses).max(0))
    powers = jnp.where(empty, 0.0, jnp.exp(lses - jnp.where(jnp.isfinite(top), top, 0.0)))
    total = powers.sum(0)
    shares = powers / jnp.where(total == 0, 1.0, total)
    return (shares[..., None] * outs).sum(0).astype(outs.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, query, key, value, bias, sink, hidden):
    return _attend_fwd(static, query, key, value, bias, sink, hidden)[0]


def _attend_fwd(static, query, key, value, bias, sink, hidden):
    def one(sums, place, own, blocks):
        *keys, bias, sink = own
        block = block_of(static, hidden, *place, keys, (0, 1))
        return sums, forward(static, block, *blocks, bias, sink)

    keys = keys_of(static, key), keys_of(static, value, turned=True)
    _, (out, lse) = over(static, one, (*keys, bias, sink), (queries_of(static, query),))
    shown = tokens_of(static, out), tokens_of(static, lse)[..., 0] * math.log(2)
    kept = out if static.streams else shown[0]
    return shown, (query, key, value, bias, sink, hidden, kept, lse)


def _attend_bwd(static, saved, cotangents):
    query, key, value, bias, sink, hidden, out, lse = saved
    dout, dlse = cotangents
    wide = jnp.promote_types(out.dtype, jnp.float32)
    # The gradient of a score is p (dp - dout·out), and p dlse more by way of the logarithm. XLA sums fast
    # over the width in place where blocks are items, and over the last axis where all are in one batch.
    if static.streams:
        dout, dlse = queries_of(static, dout), queries_of(static, dlse[..., None])
        delta = (out.astype(wide) * dout.astype(wide)).sum(2, keepdims=True) - dlse
    else:
        delta = (out.astype(wide) * dout.astype(wide)).sum(-1) - dlse
        dout, delta = queries_of(static, dout), queries_of(static, delta[..., None])

    def one(sums, place, own, blocks):
        *keys, bias = own
        query, *rest = blocks
        block = block_of(static, hidden, *place, keys, (0, 1, 0))
        dquery, dbias, *new = backward(static, block, query, bias, *rest)
        at = place[0] if static.flat else None
        return added(block, sums, (dbias, *new), at), dquery.astype(query.dtype)

    keys = keys_of(static, key), keys_of(static, key, turned=True), keys_of(static, value)
    blocks = queries_of(static, query), lse, delta, dout
    sums, dqueries = over(static, one, (*keys, bias), blocks, (bias, keys[0], keys[2]))
    dbias, dkey, dvalue = sums
    dbias = jax.tree.map(lambda g, x: g.astype(x.dtype), dbias, bias)
    dsink = None
    if sink is not None:
        # The sink's own probability moves only the sum, and has no dp.
        shape = (*lse.shape[:2], static.M, static.C)
        p = exp2((sink.astype(wide) * LOG2_E)[:, None, :, None] - lse.reshape(shape))
        dsink = -(p * delta.reshape(shape)).sum((1, 3)).astype(sink.dtype)
    dkey, dvalue = of_keys(static, dkey, key), of_keys(static, dvalue, value)
    if static.lengths:
        # What is not finite was left out by each block.
        bad = hidden.poison.swapaxes(1, 2)[..., None]
        dkey, dvalue = (jnp.where(bad, jnp.zeros((), x.dtype), x) for x in (dkey, dvalue))
    return tokens_of(static, dqueries), dkey, dvalue, dbias, dsink, None


_attend.defvjp(_attend_fwd, _attend_bwd)
