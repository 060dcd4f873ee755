"""Rows of a table: named changes to one config, all checked before the first one runs."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from tinyattn import config, cost, train
from tinyattn.checkpoint import Checkpoints
from tinyattn.sweep import _budget

Changes = Mapping[str, Any]
Rows = Iterable[tuple[str, Changes]]


def grid(axes: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Changes]]:
    """Every combination of the axes' values, named by them: grid({"optim.b1": [0.8, 0.9]})."""
    for values in itertools.product(*axes.values()):
        yield _named(axes, values)


def zipped(axes: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Changes]]:
    """The axes' values side by side, which must be equally many."""
    if len({len(values) for values in axes.values()}) > 1:
        raise ValueError(f"zipped axes differ in length: { {k: len(v) for k, v in axes.items()} }")
    for values in zip(*axes.values(), strict=True):
        yield _named(axes, values)


def cross(first: Rows, second: Rows) -> Iterator[tuple[str, Changes]]:
    """Every row of the first with every row of the second, which wins where both set a key."""
    second = list(second)
    for (name, changes), (more, others) in itertools.product(first, second):
        yield " ".join(filter(None, (name, more))), {**changes, **others}


def _named(axes, values) -> tuple[str, Changes]:
    pairs = list(zip(axes, values, strict=True))
    return " ".join(f"{key.rsplit('.', 1)[-1]}={value}" for key, value in pairs), dict(pairs)


class Run(NamedTuple):
    """One row under one seed; `told` is what the table says of it, whatever its record says."""

    row: str
    seed: int
    config: ml_collections.ConfigDict
    digest: str
    told: dict[str, Any]


class Row(NamedTuple):
    """A checked row: its program, and its runs in the order of seeds."""

    name: str
    program: train.Program
    runs: tuple[Run, ...]


def expand(base: ml_collections.ConfigDict, rows: Rows) -> list[Row]:
    """Resolves and checks every row before the first one runs.

    Args:
      base: With `seeds`, which are the table's and no part of a run's config.
      rows: Names and changes; a change may be a `fit` that meets the base's `budget`.

    Raises:
      ValueError: A row that cannot run, or a name twice; the message names the row.
    """
    found: dict[str, Row] = {}
    for name, changes in rows:
        if name in found:
            raise ValueError(f"row {name!r}: there are two rows of this name; give each its own")
        try:
            resolved, met = _budget.solve(base, changes)
            seeds = tuple(resolved.seeds)
            # A key is made of 32 bits, so larger seeds would repeat smaller ones.
            fine = all(type(seed) is int and 0 <= seed < 2**32 for seed in seeds)
            if not seeds or not fine or len(set(seeds)) < len(seeds):
                raise ValueError(
                    f"seeds={seeds} must be one or more different whole numbers, 0 to 2**32 - 1"
                )
            figure = resolved.get("figure", ())
            if len(cost.columns(figure)) not in (0, 2):
                raise ValueError(f"figure={figure} must name two costs, or none for the usual two")
            program = train.make(resolved)
            checkpoints(resolved.checkpoint, Path(), "")
        except ValueError as error:
            raise ValueError(f"row {name!r}: {error}") from error
        told = {"row": name} | ({"budget": met._asdict()} if met else {})
        found[name] = Row(name, program, tuple(_run(told, seed, resolved) for seed in seeds))
    if not found:
        raise ValueError("the table has no row: rows() must yield at least one name and changes")
    return list(found.values())


def _run(told: dict[str, Any], seed: int, resolved: ml_collections.ConfigDict) -> Run:
    own = config.plain(resolved)
    own.pop("budget", None)
    # Where data were found, which changes nothing: the record says which they are.
    own.pop("data", None)
    del own["seeds"]
    own["seed"] = seed
    told = told | {"figure": own.pop("figure", [])}
    return Run(told["row"], seed, own, config.digest(own), told)


def checkpoints(settings: Mapping[str, Any], folder: Path, name: str) -> Checkpoints:
    """The checkpoints that a config's section describes.

    Raises:
      ValueError: A setting that they refuse.
    """
    every = None if settings["every_seconds"] < 0 else settings["every_seconds"]
    return Checkpoints(folder, name, keep=settings["keep"], every_seconds=every)
