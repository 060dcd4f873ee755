"""Parts of a static pattern: some of the queries, in any order, whose blocks read runs of keys.

Keys are in any order too, so that those which belong together lie together. Each part is one call of the
softmax core, and what its runs hold beyond the pattern is masked by a rule of positions.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.attention._core import softmax
from tinyattn.masks import Mask


class Run(NamedTuple):
    """Runs of keys that the blocks of a part read.

    Attributes:
      starts: [blocks, runs], where they begin in the order of the part's keys; may lie outside.
      length: Keys a run.
      rule: (t, s) -> bool, which pairs of positions count, for NumPy and JAX arrays; no two runs of a
        block may count one pair twice. Hashable, equal by value. None is all.
    """

    starts: np.ndarray
    length: int
    rule: Callable | None = None


class Part(NamedTuple):
    """Queries that go through the core together.

    Attributes:
      rows: Their positions, in the order they are run in; T is padding.
      columns: The positions of the keys, in the order that runs are cut from; T is padding. No key at
        all gives zeros.
      C: Queries a block.
      runs: () is all keys for all queries: then both orders must begin at 0 and go up by 1.
    """

    rows: np.ndarray
    columns: np.ndarray
    C: int = 0
    runs: tuple[Run, ...] = ()

    @property
    def blocks(self) -> int:
        return -(-len(self.rows) // self.C)

    def executed(self, mask: Mask) -> int:
        """Pairs that are run, the padding of the last block included."""
        if not len(self.columns):
            return 0
        if not self.runs:
            return softmax.pairs(len(self.rows), len(self.columns), mask)
        keys = sum(run.starts.shape[1] * run.length for run in self.runs)
        return self.blocks * self.C * keys


def alike(counts: np.ndarray) -> list[np.ndarray]:
    """Blocks in groups that run as many keys as their largest, given how many each needs.

    Fewest first. A group is split as long as that saves a sixteenth of all that is needed.
    """

    def split(order):
        ends = np.arange(1, len(order))
        saved = ends * (counts[order[-1]] - counts[order[ends - 1]])
        if not saved.any() or saved.max() < counts.sum() / 16:
            return [np.sort(order)]
        end = ends[saved.argmax()]
        return split(order[:end]) + split(order[end:])

    return split(np.argsort(counts, kind="stable"))


@dataclasses.dataclass(frozen=True)
class Counted:
    """`Spans.allowed` of re-ordered tokens: the rule and the mask's band, of positions.

    Orders are bytes of int32, which hash and compare by value at no cost; None goes up from 0 by 1.
    """

    rule: Callable | None
    lookback: int | None
    lookahead: int | None
    T: int
    rows: bytes | None
    columns: bytes | None

    def __call__(self, rows, columns):
        t, s = _positions(self.rows, rows)[:, None], _positions(self.columns, columns)[None]
        return _counts(self.rule, self.lookback, self.lookahead, self.T, t, s)


def _positions(order, places):
    if order is None:
        return places
    # Places past the ends are padding, which the core masks or drops.
    return jnp.asarray(np.frombuffer(order, np.int32)).at[places].get(mode="clip")


def _counts(rule, lookback, lookahead, T, t, s):
    counts = (t < T) & (s < T)
    if rule is not None:
        counts &= rule(t, s)
    if lookback is not None:
        counts &= s >= t - lookback
    if lookahead is not None:
        counts &= s <= t + lookahead
    return counts


def attend(parts: tuple[Part, ...], query, key, value, mask: Mask) -> jax.Array:
    """Attention over the pairs that both parts and mask allow, [B, T, N, H].

    Args:
      parts: Every query is in exactly one of them.
      query: [B, T, N, H].
      key: [B, T, K, H] where K divides N.
      value: [B, T, K, H].
      mask: A query that may see no key gives zeros.
    """
    T = query.shape[1]
    outs = [_attend_part(part, query, key, value, mask) for part in parts]
    out = outs[0] if len(outs) == 1 else jnp.concatenate(outs, axis=1)
    rows = np.concatenate([part.rows for part in parts])
    return _take(out, np.argsort(rows, kind="stable")[:T])


def _attend_part(part: Part, query, key, value, mask: Mask):
    T = query.shape[1]
    query = _take(query, part.rows)
    if not len(part.columns):
        return jnp.zeros_like(query)
    key, value = _take(key, part.columns), _take(value, part.columns)
    own = _own(mask, part)
    if not part.runs:
        return softmax.attend(query, key, value, own)
    orders = [
        None if _straight(order) else order.astype(np.int32).tobytes()
        for order in (part.rows, part.columns)
    ]
    counted = functools.partial(Counted, lookback=mask.lookback, lookahead=mask.lookahead, T=T)
    spans = tuple(
        softmax.Spans(
            jnp.asarray(run.starts, jnp.int32)[None, None],
            run.length,
            counted(run.rule, rows=orders[0], columns=orders[1]),
        )
        for run in part.runs
    )
    # The band is one of positions, so it goes with the rules.
    band = {"lookback": None, "lookahead": None}
    own = dataclasses.replace(own, **band)
    return softmax.attend(query, key, value, own, spans=spans, block=part.C)


def _straight(order) -> bool:
    return np.array_equal(order, np.arange(len(order)))


def _take(x, order):
    """x [B, T, ...] in another order along T; positions past the end give zeros."""
    if _straight(order) and len(order) == x.shape[1]:
        return x
    there = order < x.shape[1]
    # No index is out of bounds: on a GPU, with deterministic scatters, the next example's first token lost
    # its gradient where one was.
    x = jnp.take(x, np.minimum(order, x.shape[1] - 1), axis=1)
    zero = jnp.zeros((), x.dtype)
    return x if there.all() else jnp.where(there.reshape(-1, *(1,) * (x.ndim - 2)), x, zero)


def _own(mask: Mask, part: Part) -> Mask:
    """The mask of a part's queries and keys, in their orders; its band is as it was."""
    return dataclasses.replace(
        mask,
        key_valid=None if mask.key_valid is None else _take(mask.key_valid, part.columns),
        segments=tuple((_take(q, part.rows), _take(k, part.columns)) for q, k in mask.segments),
    )


def pairs(part: Part, mask: Mask, T: int) -> np.ndarray:
    """The exact number of pairs that count, int64 [B or 1], from the pairs that are run."""
    arrays = [mask.key_valid, *(x for pair in mask.segments for x in pair)]
    valid, *ids = (None if x is None else np.asarray(x) for x in arrays)
    total = np.zeros(max([len(x) for x in (valid, *ids) if x is not None], default=1), np.int64)
    if not len(part.columns):
        return total
    if not part.runs:
        blocks, C = softmax.plan(len(part.rows), len(part.columns))
        part = part._replace(C=C, runs=(Run(np.zeros((blocks, 1), int), len(part.columns)),))
    for run in part.runs:
        for i in range(part.blocks):
            t = part.rows[i * part.C : (i + 1) * part.C]
            places = (run.starts[i][:, None] + np.arange(run.length)).ravel()
            s = part.columns[places[(places >= 0) & (places < len(part.columns))]]
            t, s = t[t < T], s[s < T]
            grid = t[:, None], s[None]
            counts = _counts(run.rule, mask.lookback, mask.lookahead, T, *grid)[None]
            if valid is not None:
                counts = counts & valid[:, None, s]
            for query_ids, key_ids in zip(ids[::2], ids[1::2], strict=True):
                counts = counts & (query_ids[:, t, None] == key_ids[:, None, s])
            total += counts.sum((1, 2))
    return total
