"""How the softmax core cuts a table of queries and keys, and how many pairs it therefore executes."""

import jax

from tinyattn.masks import Mask

# On a CPU, up to this many queries and keys all items go in one batched block; above, one item at a time.
SHORT = 128
# Scores of a head in one block above SHORT: with their probabilities they fill the second-level cache. Of
# fewer keys a block has no more queries than for SHORT: turned, they would lie too far apart for a cache.
SCORES = 1 << 17
# Most parts of the queries under a band, of SHORT queries at least: each is a program to compile. Four of a
# causal mask leave 5/8 of the pairs, eight would leave 9/16.
PARTS = 4
# Queries of a block that reads a window, and what its keys are a multiple of, from four times as many on:
# products of other sizes are up to a quarter slower, and for few keys the others would cost more.
BESIDE = 64
WHOLE = 16
# On other devices, where a block is of all items: 16 MB, so that memory grows with the keys alone.
WIDE_SCORES = 1 << 22


def streams(T: int, S: int) -> bool:
    """Whether `attend` goes item by item: a GPU has no use for work in small pieces."""
    return max(T, S) > SHORT and jax.default_backend() == "cpu"


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
        C = max(64, SCORES // max(S, SHORT)) if streams(T, S) else T
    else:
        C = max(128, WIDE_SCORES // S)
    blocks = -(-T // C)
    whole = [n for n in range(blocks, blocks + blocks // 2 + 1) if T % n == 0]
    blocks = whole[0] if whole else blocks
    return blocks, -(-T // blocks)


def beside(window: int) -> int:
    """Queries of a block that reads a window's keys beside their own; more is more pairs outside it.

    As many; on a CPU no more than have large enough products.
    """
    return min(window, BESIDE) if jax.default_backend() == "cpu" else window


def behind(lookback: int, others: int) -> int:
    """Keys before a block that it reads, of which it sees the last `lookback`, beside `others`."""
    keys = lookback + others
    return lookback if keys < 4 * WHOLE else lookback + -keys % WHOLE


def parts(T: int, S: int, mask: Mask) -> list[tuple[slice, slice]]:
    """Queries and the keys they are computed with: all, or for each part of them what the band reaches."""
    count = min(PARTS, T // SHORT) if streams(T, S) else 1
    if count < 2 or (mask.lookback is None and mask.lookahead is None):
        return [(slice(0, T), slice(0, S))]
    found = []
    for i in range(count):
        rows = slice(T * i // count, T * (i + 1) // count)
        first = 0 if mask.lookback is None else min(max(rows.start - mask.lookback, 0), S - 1)
        end = S if mask.lookahead is None else min(rows.stop + mask.lookahead, S)
        found.append((rows, slice(first, max(end, first + 1))))
    return found


def pairs(T: int, S: int, mask: Mask = Mask(), block: int = 0) -> int:
    """Query-key pairs that `attend` executes without spans, the padding of last blocks included."""

    def executed(rows, columns):
        keys = columns.stop - columns.start
        blocks, C = plan(rows.stop - rows.start, keys, block)
        return blocks * C * keys

    return sum(executed(*part) for part in parts(T, S, mask))
