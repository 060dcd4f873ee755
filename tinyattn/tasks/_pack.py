"""Several short texts in one row, so that little of it is padding."""

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
# What stands where there is no token; other arrays have zeros there.
EMPTY = {"labels": -100}


def rows(lengths: np.ndarray, length: int) -> list[list[int]]:
    """Which texts share a row of `length` tokens: each, the longest first, where it fits best.

    The same for the same lengths. Texts of a row, and rows by their first text, are in the texts' order.

    Raises:
      ValueError: A text is longer than a row.
    """
    if lengths.max(initial=0) > length:
        raise ValueError(
            f"task.pack={length} is less than a text of {lengths.max()} tokens: raise it"
        )
    # Rows by how many tokens they have room for.
    roomy: list[list[list[int]]] = [[] for _ in range(length + 1)]
    for i in np.argsort(-lengths, kind="stable"):
        n = int(lengths[i])
        room = next((room for room in range(n, length + 1) if roomy[room]), None)
        row = [] if room is None else roomy[room].pop()
        row.append(int(i))
        roomy[(length if room is None else room) - n].append(row)
    return sorted(sorted(row) for kind in roomy for row in kind)


def pack(arrays: Arrays, length: int) -> dict[str, np.ndarray]:
    """Rows of `length` tokens from rows of one text each, with `segment_ids` from 0 in every row.

    Args:
      arrays: [n, T, ...] each, among them `key_valid`, which is True for the first tokens of a row.
      length: Of a packed row.
    """
    lengths = arrays["key_valid"].sum(1)
    return _filled(arrays, lengths, rows(lengths, length), length)


def pack_pairs(read: Arrays, written: Arrays, length: int, width: int) -> tuple[dict, dict]:
    """The same of pairs of texts, the first of a row of `length` tokens and the second of one of `width`.

    Both have the same rows and `segment_ids`. `width` must have room for the longest text that is written.
    """
    n, m = (x["key_valid"].sum(1) for x in (read, written))
    # A pair takes the share of a row that the longer of its two shares is.
    shared = rows(np.maximum(n, -(-m * length // width)), length)
    return _filled(read, n, shared, length), _filled(written, m, shared, width)


def _filled(arrays: Arrays, lengths: np.ndarray, shared: list[list[int]], length: int) -> dict:
    """The first `lengths` tokens of texts, in rows of `length` that those of `shared` share."""
    made = {
        name: np.full((len(shared), length, *x.shape[2:]), EMPTY.get(name, 0), x.dtype)
        for name, x in arrays.items()
    }
    made["segment_ids"] = np.zeros((len(shared), length), np.int32)
    for row, texts in enumerate(shared):
        ends = np.cumsum(lengths[texts])
        for segment, (i, end) in enumerate(zip(texts, ends, strict=True)):
            start = end - lengths[i]
            for name, x in arrays.items():
                made[name][row, start:end] = x[i, : lengths[i]]
            made["segment_ids"][row, start:] = segment
    return made
