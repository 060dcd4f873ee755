"""Layers as paths name them, and who owns what layers have in common."""

import functools
import re
from collections.abc import Iterable

OWNERS = ("all", "groups", "repeat", "cycle", "cycle_rev", "sandwich")
PATTERN = r"block_(\d+)/"


def check(name: str, pattern: str) -> None:
    """Refuses what is no regular expression with one group, on behalf of the scheme called `name`."""
    if regular(name, "layers", pattern).groups != 1:
        raise ValueError(f"{name}: layers={pattern!r} needs one (group), the layer's number")


def regular(name: str, field: str, pattern: str) -> re.Pattern:
    """The regular expression in a field of the scheme called `name`; refused if it is none."""
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{name}: {field}={pattern!r} is no regular expression: {error}"
        ) from error


class Layers:
    """The layers that a pattern finds in paths, in order of their numbers."""

    def __init__(self, pattern: str, paths: Iterable[str]):
        self._pattern = pattern
        found = [m[1] for path in paths if (m := re.search(pattern, path))]
        # A layer's number as its path spells it, for it may be padded with zeros.
        self._text = {int(text): text for text in found}
        self.numbers = sorted(self._text)

    def of(self, path: str) -> int | None:
        """The number of a path's layer; None if it is of none."""
        found = re.search(self._pattern, path)
        return int(found[1]) if found else None

    def place(self, path: str) -> tuple[str, int]:
        """The stack and the number of a path's layer, for an encoder and a decoder count alike."""
        found = re.search(self._pattern, path)
        return path[: found.start()], int(found[1])

    def moved(self, path: str, number: int) -> str:
        """The same path in another layer."""
        found = re.search(self._pattern, path)
        return f"{path[: found.start(1)]}{self._text[number]}{path[found.end(1) :]}"

    def owners(self, name: str, kind: str, groups: int) -> dict[int, int]:
        """Number of each layer to that of the layer whose leaves it uses.

        Raises:
          ValueError: The layers do not divide so; the message is on behalf of the scheme called `name`.
        """
        L = len(self.numbers)
        if kind in ("groups", "repeat") and L % groups:
            raise ValueError(
                f"{name}: groups={groups} must divide the {L} layers"
                f" {self.numbers[0]}..{self.numbers[-1]}"
            )
        if groups > L - 2 * (kind == "sandwich") and groups > 1:
            raise ValueError(f"{name}: groups={groups} are more than {kind!r} has of {L} layers")
        return {
            n: self.numbers[i] for n, i in zip(self.numbers, places(kind, L, groups), strict=True)
        }


@functools.cache
def places(kind: str, L: int, groups: int) -> tuple[int, ...]:
    """For each of L layers the place of its owner.

    >>> places("groups", 6, 3), places("cycle", 6, 3)
    ((0, 0, 2, 2, 4, 4), (0, 1, 2, 0, 1, 2))
    >>> places("cycle_rev", 6, 3), places("sandwich", 6, 2)
    ((0, 1, 2, 2, 1, 0), (0, 1, 1, 3, 3, 5))
    """
    match kind:
        case "all":
            return (0,) * L
        case "groups" | "repeat":
            size = L // groups
            return tuple(i // size * size for i in range(L))
        case "cycle":
            return tuple(i % groups for i in range(L))
        case "cycle_rev":
            # The last time round goes backwards.
            turn = L - groups
            back = [L - 1 - i for i in range(turn, L)]
            return tuple(i % groups for i in range(turn)) + tuple(back)
        case "sandwich":
            size = -(-max(L - 2, 1) // groups)
            return (0, *(1 + i // size * size for i in range(L - 2)), *([L - 1] if L > 1 else []))
