"""One block of the softmax core: which keys its queries see, its scores, and its gradients."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn.attention._core.exp2 import exp2
from tinyattn.masks import Mask

# Stands for minus infinity where a difference of two of them must not be NaN.
FLOOR = -1e30
LOG2_E = math.log2(math.e)


class Spans(NamedTuple):
    """Keys that a block of queries sees: `length` positions from each of its `starts`.

    Attributes:
      starts: int32 [B or 1, K or 1, blocks, runs]; may be traced, and may lie outside 0..S-1.
      length: Positions a run.
      allowed: (rows [t], columns [s]) -> bool [t, s], which pairs count, so that no two spans of a block
        count one pair twice; None is all.
    """

    starts: jax.Array
    length: int
    allowed: Callable | None = None


class Hidden(NamedTuple):
    """What has no gradient. Leading axes are [B or 1, ...] for masks and [B or 1, K or 1, ...] else."""

    mask: Mask
    poison: jax.Array | None
    starts: tuple[jax.Array, ...]
    rng: jax.Array | None


class Block(NamedTuple):
    """What one block of queries sees of its item's arrays, and how.

    `runs` are (start, length) of what was cut from the keys; () is all of them.
    """

    rows: jax.Array
    columns: jax.Array
    arrays: tuple[jax.Array, ...]
    allowed: jax.Array | None
    poison: jax.Array | None
    keep: jax.Array | None
    runs: tuple[tuple[jax.Array, int], ...]


def _runs(static, hidden, index, i):
    """For every run of a block: the number of its span, where it asks to start, and where it is cut."""
    for number, (starts, length) in enumerate(zip(hidden.starts, static.lengths, strict=True)):
        own = _own(starts, static, index, heads=True)[i]
        # Moved inside; what it did not ask for does not count.
        cut = jnp.clip(own, 0, static.held - length)
        yield from ((number, own[run], cut[run]) for run in range(own.shape[0]))


def _own(x, static, index, *, heads: bool):
    """The part of one item; an axis of length 1 serves all, and stays out of any batching."""
    x = x[0] if x.shape[0] == 1 else x[index // static.K]
    if not heads:
        return x
    return x[0] if x.shape[0] == 1 else x[index % static.K]


def block_of(static, hidden, index, i, arrays, axes) -> Block:
    """What block i of an item sees of its arrays, whose axis of keys is given for each."""
    # Or the mask of an only block is computed once, kept as an array, and read at more than it costs.
    i, _ = jax.lax.optimization_barrier((i, index))
    rows = static.row + i * static.C + jnp.arange(static.C)
    mask = jax.tree.map(lambda x: _own(x, static, index, heads=False)[None], hidden.mask)
    poison = None if hidden.poison is None else _own(hidden.poison, static, index, heads=True)
    cut = ()
    if not hidden.starts:
        columns, end = static.column + jnp.arange(static.S), static.column + static.S
        allowed = mask.allowed(rows, columns, end)[0] if mask.kinds else None
    else:
        runs = list(_runs(static, hidden, index, i))
        cut = tuple((start, static.lengths[number]) for number, _, start in runs)

        def take(x, axis):
            slice_ = functools.partial(jax.lax.dynamic_slice_in_dim, x, axis=axis)
            return jnp.concatenate([slice_(*ends) for ends in cut], axis)

        def count(number, asked, span):
            inside = ((span >= asked) & (span < asked + len(span)))[None]
            rule = static.allowed[number]
            return jnp.tile(inside, (static.C, 1)) if rule is None else inside & rule(rows, span)

        spans = [start + jnp.arange(length) for start, length in cut]
        columns = jnp.concatenate(spans)
        counted = [count(*run[:2], span) for run, span in zip(runs, spans, strict=True)]
        allowed = jnp.concatenate(counted, axis=1) & mask.allowed(rows, columns, static.S)[0]
        poison = take(jnp.pad(poison, (0, static.held - static.S)), 0)
        # Not of all keys at once: an array is turned fast on a CPU only where nothing else is done to it.
        arrays = tuple(
            jnp.where(jnp.expand_dims(poison, 1 - axis), 0.0, take(x, axis))
            for x, axis in zip(arrays, axes, strict=True)
        )
    shape = (columns.shape[0], static.M * static.C)
    if allowed is not None:
        allowed = jnp.tile(allowed.T, static.M)
    keep = None
    if static.dropout:
        rng = jax.random.fold_in(jax.random.fold_in(hidden.rng, index), i)
        keep = jax.random.bernoulli(rng, 1 - static.dropout, shape)
    return Block(rows, columns, arrays, allowed, poison, keep, cut)


def _factor(static, bias) -> float:
    """What queries are multiplied by before the product: all of the scale, if nothing comes after it."""
    return static.scale * (1.0 if static.cap or bias is not None else LOG2_E)


def _scores(static, block: Block, s, bias):
    """Products [s, t] in units of log 2, so that probabilities are powers of two."""
    if not static.cap and bias is None:
        return s
    if static.cap:
        s = static.cap * jnp.tanh(s / static.cap)
    if bias is not None:
        added = bias.scores(block.rows, block.columns)  # [M, t, s]
        s += added.transpose(2, 0, 1).reshape(s.shape)
    return s * LOG2_E


def _shown(block: Block, s):
    """Scores with the floor where nothing may be seen."""
    return s if block.allowed is None else jnp.where(block.allowed, s, FLOOR)


def _powers(block: Block, s, shift):
    """Powers of two of scores that are `_shown`."""
    p = exp2(s - shift)
    if block.poison is not None:
        # Not in the scores: a compiled maximum may lose a NaN.
        p = jnp.where(block.poison[:, None], jnp.nan, p)
    # The scores tell what is hidden: the mask again would be as much work as the exponential.
    return p if block.allowed is None else jnp.where(s == FLOOR, 0.0, p)


def _value_product(static, formula: str, x, y, axis: int = 1):
    """The einsum; if a key has several values, for each of them: x along axis 1, y along the axis given."""
    if static.values == 1:
        return jnp.einsum(formula, x, y)

    def apart(x, axis):
        return x.reshape(*x.shape[:axis], static.values, -1, *x.shape[axis + 1 :])

    each = jax.vmap(functools.partial(jnp.einsum, formula), (1, axis), 1)
    found = each(apart(x, 1), apart(y, axis))
    return found.reshape(found.shape[0], -1)


def _kept(static, block: Block, p):
    return p if block.keep is None else jnp.where(block.keep, p / (1 - static.dropout), 0.0)


def forward(static, block: Block, query, bias, sink):
    """(out [I, t], logarithm to base 2 of the sum of powers [1, t]) of one block."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    key, turned = (x.astype(dtype) for x in block.arrays)
    s = jnp.einsum("sh,ht->st", key, query.astype(dtype) * _factor(static, bias))
    s = _shown(block, _scores(static, block, s, bias))
    top = s.max(0, keepdims=True)
    if sink is not None:
        sink = jnp.repeat(sink.astype(dtype) * LOG2_E, static.C)[None]
        top = jnp.maximum(top, sink)
    p = _powers(block, s, top)
    total = p.sum(0, keepdims=True)
    if sink is not None:
        total += exp2(sink - top)
    total = jnp.where(total == 0, 1.0, total)
    out = _value_product(static, "st,hs->ht", _kept(static, block, p), turned, 0)
    return (out / total).astype(query.dtype), top + jnp.log2(total)


def backward(static, block: Block, query, bias, lse, delta, dout):
    """Gradients of one block: query [H, t], bias, key [s, H], value [s, I]."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    key, turned, value, query, dout = (x.astype(dtype) for x in (*block.arrays, query, dout))
    factor = _factor(static, bias)
    query = query * factor
    s = jnp.einsum("sh,ht->st", key, query)
    s, pull = jax.vjp(functools.partial(_scores, static, block), s, bias)
    p = _powers(block, _shown(block, s), lse)
    dvalue = _value_product(static, "st,ht->sh", _kept(static, block, p), dout)
    dp = _kept(static, block, _value_product(static, "sh,ht->st", value, dout))
    # Scores are in units of log 2: the derivative of 2^s is p ln 2.
    ds, dbias = pull(p * (dp - delta) * math.log(2))
    dquery = jnp.einsum("st,hs->ht", ds, turned) * factor
    return dquery, dbias, jnp.einsum("st,ht->sh", ds, query), dvalue


def added(block: Block, sums, new, at=None):
    """Gradients of a block added where they came from: of the bias, then of keys and of values.

    Args:
      block: The block.
      sums: Of its item alone, or those of all items along a first axis.
      new: Those of this block.
      at: Its item, if the sums are those of all.
    """
    item = () if at is None else (at,)
    (bias, *sums), (dbias, *new) = sums, new
    bias = jax.tree.map(lambda total, part: _onto(total, part, *item), bias, dbias)
    if not block.runs:
        return bias, *(_onto(*pair, *item) for pair in zip(sums, new, strict=True))
    place = 0
    for start, length in block.runs:
        own = slice(place, place + length)
        pairs = zip(sums, new, strict=True)
        sums = [_onto(total, part[own], *item, start) for total, part in pairs]
        place += length
    return bias, *sums


def _onto(total, part, *corner):
    """The total with the part added at the first of its indices; without any all of it is."""
    if not corner:
        return total + part
    part = jnp.expand_dims(part, range(total.ndim - part.ndim))
    corner += (0,) * (total.ndim - len(corner))
    corner = [jnp.asarray(i, jnp.int32) for i in corner]  # one type for all, also with 64 bits
    part += jax.lax.dynamic_slice(total, corner, part.shape)
    return jax.lax.dynamic_update_slice(total, part, corner)
