"""Masks as structure: who may attend to whom, said in a way that an executor can exploit.

A mask is a band of positions, the keys that hold a token, and segments that do not see each other. It
turns into an array only in references and in tests, and it knows its exact number of allowed pairs.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """Query t may attend to key s if the band, the key and every pair of segments allow it.

    `a & b` allows what both allow. Positions of queries and keys are counted from 0 alike.

    Attributes:
      lookback: Farthest key behind the query, s >= t - lookback (positions); None is no bound.
      lookahead: Farthest key ahead of the query, s <= t + lookahead (positions); 0 is causal.
      key_valid: [B, S] bool, True where the key is a token; None is everywhere.
      segments: Pairs of ids, [B, T] of the queries and [B, S] of the keys, which must be equal.
    """

    lookback: int | None = dataclasses.field(default=None, metadata={"static": True})
    lookahead: int | None = dataclasses.field(default=None, metadata={"static": True})
    key_valid: jax.Array | None = None
    segments: tuple[tuple[jax.Array, jax.Array], ...] = ()

    def __and__(self, other: "Mask") -> "Mask":
        def tighter(a, b):
            return min((x for x in (a, b) if x is not None), default=None)

        valid = [v for v in (self.key_valid, other.key_valid) if v is not None]
        return Mask(
            lookback=tighter(self.lookback, other.lookback),
            lookahead=tighter(self.lookahead, other.lookahead),
            key_valid=(valid[0] & valid[1]) if len(valid) == 2 else valid[0] if valid else None,
            segments=self.segments + other.segments,
        )

    @property
    def kinds(self) -> frozenset[str]:
        """Which of causal, window, padding and segments the mask makes use of."""
        window = self.lookback is not None or self.lookahead not in (None, 0)
        present = {
            "causal": self.lookahead == 0,
            "window": window,
            "padding": self.key_valid is not None,
            "segments": bool(self.segments),
        }
        return frozenset(kind for kind, here in present.items() if here)

    def allowed(self, query_positions, key_positions, S: int) -> jax.Array:
        """The block of the mask at these positions; a key outside 0..S-1 is masked.

        Args:
          query_positions: [t] integers, may be traced.
          key_positions: [s] integers, may be traced.
          S: Number of keys.

        Returns:
          bool [B or 1, t, s].
        """
        query, key = query_positions[:, None], key_positions[None, :]
        block = jnp.broadcast_to((key >= 0) & (key < S), (query.shape[0], key.shape[1]))
        if self.lookback is not None:
            block &= key >= query - self.lookback
        if self.lookahead is not None:
            block &= key <= query + self.lookahead
        block = block[None]

        def take(x, positions, fill):
            # A negative index would wrap around, so it is sent past the end first.
            positions = jnp.where(positions < 0, x.shape[1], positions)
            return jnp.take(x, positions, axis=1, mode="fill", fill_value=fill)

        if self.key_valid is not None:
            block &= take(self.key_valid, key_positions, False)[:, None, :]
        for query_ids, key_ids in self.segments:
            here = take(query_ids, query_positions, 0)[:, :, None]
            block &= here == take(key_ids, key_positions, 0)[:, None, :]
        return block

    def dense(self, T: int, S: int) -> jax.Array:
        """The whole mask as an array, bool [B or 1, T, S]: for references and tests."""
        return self.allowed(jnp.arange(T), jnp.arange(S), S)

    def pairs(self, T: int, S: int) -> np.ndarray:
        """The exact number of allowed (query, key) pairs of each example, int64 [B or 1]."""
        return self.seen(T, S).sum(-1)

    def seen(self, T: int, S: int) -> np.ndarray:
        """How many keys each query may see, int64 [B or 1, T].

        Counted by bisection over the keys of each segment, never by building the T x S array.
        """
        arrays = [a for pair in self.segments for a in pair]
        arrays += [] if self.key_valid is None else [self.key_valid]
        B = max([a.shape[0] for a in arrays], default=1)
        positions = np.arange(max(T, S))
        low = np.zeros(T, int) if self.lookback is None else positions[:T] - self.lookback
        high = np.full(T, S - 1) if self.lookahead is None else positions[:T] + self.lookahead
        low, high = np.clip(low, 0, S), np.clip(high, -1, S - 1)
        counts = np.zeros((B, T), np.int64)
        for b in range(B):
            query_ids, key_ids = self._segment_numbers(b, T, S)
            valid = np.ones(S, bool) if self.key_valid is None else _row(self.key_valid, b)
            keys = np.sort((key_ids * (S + 1) + positions[:S])[valid])
            start = np.searchsorted(keys, query_ids * (S + 1) + low, side="left")
            stop = np.searchsorted(keys, query_ids * (S + 1) + high, side="right")
            counts[b] = np.maximum(stop - start, 0)
        return counts

    def _segment_numbers(self, b: int, T: int, S: int) -> tuple[np.ndarray, np.ndarray]:
        """One number for each combination of segment ids in example b: [T] and [S]."""
        if not self.segments:
            return np.zeros(T, np.int64), np.zeros(S, np.int64)
        queries = np.stack([_row(q, b) for q, _ in self.segments], axis=1)
        keys = np.stack([_row(k, b) for _, k in self.segments], axis=1)
        both = np.concatenate([queries, keys]).astype(np.int64)
        numbers = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        return numbers[:T], numbers[T:]


def _row(array, b: int) -> np.ndarray:
    return np.asarray(array)[min(b, array.shape[0] - 1)]


def causal() -> Mask:
    """A token sees itself and what came before."""
    return Mask(lookahead=0)


def window(size: int) -> Mask:
    """A token sees less than `size` positions to either side, itself included: |t - s| < size.

    Raises:
      ValueError: size is less than 1.
    """
    if size < 1:
        raise ValueError(f"{size=} must be at least 1, the token itself")
    return Mask(lookback=size - 1, lookahead=size - 1)


def padding(key_valid) -> Mask:
    """Only keys marked True, [B, S] bool, are seen."""
    if key_valid.dtype != bool:
        raise ValueError(f"key_valid has dtype {key_valid.dtype}; True may attend, so give bools")
    return Mask(key_valid=key_valid)


def segments(ids, key_ids=None) -> Mask:
    """Tokens see those with their own id: [B, T] of the queries, [B, S] of the keys if they differ."""
    return Mask(segments=((ids, ids if key_ids is None else key_ids),))
