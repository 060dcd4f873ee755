"""A table of runs: rows of changes to one config, each run once, each remembered.

An ablation file has `get_config(arg)` for the base, whose `seeds` are the table's, and `rows()`,
which yields `name, {dotted.key: value}`. A base's `figure` names the two costs that the table is
drawn against. A run is known by the hash of its config, without these two, so running a table
again is free, and a new row or seed costs only itself.
"""

import itertools
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections

from tinyattn import config, cost, model, records, train
from tinyattn.checkpoint import Checkpoints

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
      rows: Names and changes.

    Raises:
      ValueError: A row that cannot run, or a name twice; the message names the row.
    """
    found: dict[str, Row] = {}
    for name, changes in rows:
        if name in found:
            raise ValueError(f"row {name!r}: there are two rows of this name; give each its own")
        try:
            resolved = config.override(base, changes)
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
            _checkpoints(resolved.checkpoint, Path(), "")
        except ValueError as error:
            raise ValueError(f"row {name!r}: {error}") from error
        found[name] = Row(name, program, tuple(_run(name, seed, resolved) for seed in seeds))
    if not found:
        raise ValueError("the table has no row: rows() must yield at least one name and changes")
    return list(found.values())


def _run(name: str, seed: int, resolved: ml_collections.ConfigDict) -> Run:
    own = config.plain(resolved)
    del own["seeds"]
    own["seed"] = seed
    told = {"row": name, "figure": own.pop("figure", [])}
    return Run(name, seed, own, config.digest(own), told)


class Watcher:
    """Told of what happens; a progress bar overrides what it shows."""

    def table(self, done: int, total: int) -> None:
        """`done` of `total` runs have a record."""

    def start(self, row: str, seeds: Sequence[int]) -> None:
        """These seeds of a row begin."""

    def progress(self, progress: train.Progress) -> None:
        """A dispatch is over."""


def run_table(table: list[Row], workdir: Path, watcher: Watcher | None = None) -> list[dict]:
    """Runs what has no record yet, and returns all records in the table's order.

    A row that fails is recorded as failed and the others go on; it is tried again the next time.

    Args:
      table: From `expand`.
      workdir: Gets `runs/<digest>/` and `results.jsonl`.
      watcher: Told of progress.
    """
    watcher = watcher or Watcher()
    runs = [run for row in table for run in row.runs]
    finished = {run.digest: records.read(records.run_dir(workdir, run.digest)) for run in runs}

    def gather() -> list[dict]:
        known = [finished[run.digest] | run.told for run in runs if finished[run.digest]]
        records.gather(workdir, known)
        watcher.table(sum(_ok(finished[run.digest]) for run in runs), len(runs))
        return known

    known = gather()
    baseline = _Baseline(table[0])
    for row in table:
        # Two rows of one configuration are trained once and shown in both places.
        todo = [run for run in row.runs if not _ok(finished[run.digest])]
        size = row.program.config.seeds_per_program
        row_costs = None
        for start in range(0, len(todo), size):
            group = todo[start : start + size]
            watcher.start(row.name, [run.seed for run in group])
            began = time.perf_counter()
            try:
                row_costs = row_costs or baseline.costs(row)
                outcomes = _train(row.program, group, workdir, watcher.progress)
            except Exception as error:  # one row must not take the others with it
                first = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
                said = f"{first}\n{traceback.format_exc()}"
                outcomes = [train.Outcome(run.seed, None, 0, [], said) for run in group]
            seconds = (time.perf_counter() - began) / len(group)
            # All of a group before the first is written: it would be another program without it.
            made = [
                _record(row, run, outcome, row_costs or {}, seconds)
                for run, outcome in zip(group, outcomes, strict=True)
            ]
            for run, (record, arrays) in zip(group, made, strict=True):
                records.write(records.run_dir(workdir, run.digest), record, arrays)
                finished[run.digest] = record
            train.discard(_folder(workdir, group))
            known = gather()
    return known


def _ok(record: dict | None) -> bool:
    return record is not None and record["status"] == "ok"


class _Baseline:
    """Times rows against the table's first, in turns, in this process."""

    def __init__(self, first: Row):
        self._first = first
        self._call: Callable | None = None

    def costs(self, row: Row) -> dict[str, Any]:
        state = row.program.init(row.runs[0].seed)
        ahead = train.forward(row.program, state)
        if row is self._first:
            self._call = ahead.call
        elif self._call is None:
            program = self._first.program
            self._call = train.forward(program, program.init(self._first.runs[0].seed)).call
        timed = cost.latency({"baseline": self._call, "row": ahead.call}, seconds=0.5)["row"]
        found = train.costs(row.program, state, ahead)
        found["latency_seconds"] = timed["latency_seconds"]
        found["latency_ratio"] = 1.0 if row is self._first else timed["latency_ratio"]
        return found


def _train(program, group: Sequence[Run], workdir: Path, report) -> list[train.Outcome]:
    folder = _folder(workdir, group)
    with _checkpoints(group[0].config["checkpoint"], folder, _name(group)) as checkpoints:
        return train.fit(program, [run.seed for run in group], checkpoints, report)


def _name(group: Sequence[Run]) -> str:
    return config.digest([run.digest for run in group]) if len(group) > 1 else group[0].digest


def _folder(workdir: Path, group: Sequence[Run]) -> Path:
    return records.run_dir(workdir, _name(group)) / "checkpoints"


def _checkpoints(settings: Mapping[str, Any], folder: Path, name: str) -> Checkpoints:
    every = None if settings["every_seconds"] < 0 else settings["every_seconds"]
    return Checkpoints(folder, name, keep=settings["keep"], every_seconds=every)


def _record(row: Row, run: Run, outcome: train.Outcome, row_costs: dict, seconds: float):
    record = {
        "row": run.row,
        "seed": run.seed,
        "status": "failed" if outcome.error else "ok",
        "digest": run.digest,
        "metrics": {},
        "costs": row_costs,
        "simulated": model.simulated(row.program.model.config),
        "history": outcome.history,
        "config": run.config,
        "seconds": seconds,
        **records.environment(),
    }
    if outcome.error:
        return record | {"error": outcome.error}, None
    program, arrays = row.program, {}
    for name in ("validation", "test"):
        split = getattr(program.task, name)
        correct, losses = train.evaluate(program, outcome.theta, split)
        record["metrics"][f"{name}_accuracy"] = float(correct.mean())
        record["metrics"][f"{name}_loss"] = float(losses.mean())
        if name == "test":
            arrays = {"correct": correct, "loss": losses, "label": split.labels[split.labels >= 0]}
    record["metrics"]["step"] = outcome.step
    return record, arrays
