"""The softmax core: exact attention in blocks that stay in cache, with a gradient of its own.

Work is cut into items, one key/value head of one example with the M = N / K query heads that read it,
and an item's queries into blocks. Nothing larger than a block of scores is held between forward and
backward: the backward pass recomputes the probabilities from the saved logarithm of their sum, and needs
no sum over keys of its own, since Σ_s p_s dp_s is dout·out. A block sees all keys, or with `Spans` only
those that a sparse variant names, and the work of the others is never done.

Scores are [keys, queries] and every product is asked for in the layout that runs fastest on a CPU. On a
GPU `vendor` takes over where it computes the same.

Source: Dao et al. 2022, "FlashAttention", https://arxiv.org/abs/2205.14135, algorithms 1 and 4, without
  the blocks of keys.
"""

import functools
import math

import jax
import jax.numpy as jnp

from tinyattn.attention._core import vendor
from tinyattn.attention._core.block import LOG2_E, Hidden, Spans, added, backward, block_of, forward
from tinyattn.attention._core.exp2 import exp2
from tinyattn.attention._core.layout import Static, contain, keys_of, of_keys, queries_of, tokens_of
from tinyattn.masks import Mask

# On a CPU, up to this many keys all items go in one batched block; above, one item at a time.
SHORT = 128
# Scores of a head in one block above SHORT: with their probabilities they fill the second-level cache.
SCORES = 1 << 17
# On other devices, where a block is of all items: 16 MB, so that memory grows with the keys alone.
WIDE_SCORES = 1 << 22


def streams(S: int) -> bool:
    """Whether `attend` goes item by item: a GPU has no use for work in small pieces."""
    return S > SHORT and jax.default_backend() == "cpu"


def plan(T: int, S: int, block: int = 0) -> tuple[int, int]:
    """Blocks of queries and their length: equal ones, so that the last is not mostly padding.

    Args:
      T: Queries.
      S: Keys.
      block: Most queries of a block; 0 lets the backend choose, without padding if it can.
    """
    if block:
        blocks = -(-T // block)
        return blocks, -(-T // blocks)
    if jax.default_backend() == "cpu":
        C = max(64, SCORES // S) if streams(S) else T
    else:
        C = max(128, WIDE_SCORES // S)
    blocks = -(-T // C)
    whole = [n for n in range(blocks, blocks + blocks // 2 + 1) if T % n == 0]
    blocks = whole[0] if whole else blocks
    return blocks, -(-T // blocks)


def pairs(T: int, S: int, block: int = 0) -> int:
    """Query-key pairs that `attend` executes without spans, the padding of the last block included."""
    blocks, C = plan(T, S, block)
    return blocks * C * S


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
    if mask.kinds or spans:
        key, value, poison = contain(key, value)
    # A mask may be of NumPy arrays, which an index inside a loop cannot read.
    mask = jax.tree.map(jnp.asarray, mask)
    plain = not (block or cap or static.dropout) and bias is None and sink is None
    # A last block of less than C queries would count as more than the kernel executes.
    if plain and T % C == 0 and vendor.applies(query, key, value, mask, vendor.capability()):
        alone = Hidden(mask, None, (), None)

        def core(*heads):
            return _attend(static, *heads, None, None, alone)

        return vendor.attend(core, static.scale, query, key, value, mask, poison)
    hidden = Hidden(mask, poison, tuple(span.starts for span in spans), rng)
    bias = None if bias is None else bias.per_item(B, K, M)
    sink = None if sink is None else jnp.broadcast_to(sink.reshape(K, M), (B, K, M))
    bias, sink = jax.tree.map(lambda x: x.reshape(B * K, *x.shape[2:]), (bias, sink))
    try:
        return _attend(static, query, key, value, bias, sink, hidden)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "the softmax core has no forward mode (jax.jvp, jax.jacfwd): take jax.vjp, jax.grad or"
            " jax.jacrev, over which forward mode works, or differentiate the variant's `reference`"
        ) from error


def _map(static, item, *xs):
    """item(index, *x) over all items, one after the other or in one batch."""
    index = jnp.arange(xs[0].shape[0])
    if streams(static.S):
        return jax.lax.map(lambda own: item(*own), (index, *xs))
    return jax.vmap(item)(index, *xs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(static, query, key, value, bias, sink, hidden):
    return _attend_fwd(static, query, key, value, bias, sink, hidden)[0]


def _attend_fwd(static, query, key, value, bias, sink, hidden):
    def item(index, queries, key, turned_value, bias, sink):
        def one(x):
            i, query = x
            block = block_of(static, hidden, index, i, (key, turned_value), (0, 1))
            return forward(static, block, query, bias, sink)

        return _each(one, queries)

    laid = queries_of(static, query), keys_of(static, key), keys_of(static, value, turned=True)
    out, lse = _map(static, item, *laid, bias, sink)
    out = tokens_of(static, out)
    return out, (query, key, value, bias, sink, hidden, out, lse)


def _each(function, queries):
    """function((i, queries[i])) over the blocks of an item; a single one without a loop."""
    if queries.shape[0] == 1:
        return jax.tree.map(lambda x: x[None], function((0, queries[0])))
    return jax.lax.map(function, (jnp.arange(queries.shape[0]), queries))


def _attend_bwd(static, saved, dout):
    query, key, value, bias, sink, hidden, out, lse = saved
    wide = jnp.promote_types(out.dtype, jnp.float32)
    delta = (out.astype(wide) * dout.astype(wide)).sum(-1, keepdims=True)
    delta = queries_of(static, delta)  # [items, blocks, 1, t]

    def item(index, queries, key, turned_key, value, bias, lse, delta, dout):
        def one(sums, x):
            i, query, *rest = x
            block = block_of(static, hidden, index, i, (key, turned_key, value), (0, 1, 0))
            dquery, dbias, *new = backward(static, block, query, bias, *rest)
            sums = (
                jax.tree.map(jnp.add, sums[0], dbias),
                *added(static, hidden, index, i, sums[1:], new),
            )
            return sums, dquery.astype(query.dtype)

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide), (bias, key, value))
        xs = (jnp.arange(queries.shape[0]), queries, lse, delta, dout)
        if queries.shape[0] == 1:
            sums, dquery = one(zeros, (0, *(x[0] for x in xs[1:])))
            return dquery[None], sums
        sums, dqueries = jax.lax.scan(one, zeros, xs)
        return dqueries, sums

    keys = keys_of(static, key), keys_of(static, key, turned=True), keys_of(static, value)
    laid = queries_of(static, query), *keys, bias, lse, delta, queries_of(static, dout)
    dqueries, (dbias, dkey, dvalue) = _map(static, item, *laid)
    dbias = jax.tree.map(lambda g, x: g.astype(x.dtype), dbias, bias)
    dsink = None
    if sink is not None:
        # The sink's own probability moves only the sum, Σ_s p_s dp_s = dout·out.
        shape = (*lse.shape[:2], static.M, static.C)
        p = exp2((sink.astype(wide) * LOG2_E)[:, None, :, None] - lse.reshape(shape))
        dsink = -(p * delta.reshape(shape)).sum((1, 3)).astype(sink.dtype)
    dkey, dvalue = of_keys(static, dkey, key), of_keys(static, dvalue, value)
    return tokens_of(static, dqueries), dkey, dvalue, dbias, dsink, None


_attend.defvjp(_attend_fwd, _attend_bwd)
