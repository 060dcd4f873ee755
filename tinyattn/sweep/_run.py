"""Runs the rows of a table, each configuration once, and remembers them."""

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tinyattn import config, cost, model, records, tasks, train, weights
from tinyattn.sweep._rows import Row, Run, checkpoints
from tinyattn.sweep._written import written


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
      workdir: Gets `runs/<digest>/` and `results.jsonl`; see `records`.
      watcher: Told of progress.

    Raises:
      ValueError: Another process is at work in the workdir.
    """
    with records.alone(workdir):
        return _run_table(table, workdir, watcher or Watcher())


def _run_table(table: list[Row], workdir: Path, watcher: Watcher) -> list[dict]:
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
                said = _said(error)
                outcomes = [train.Outcome(run.seed, None, 0, [], said) for run in group]
            seconds = (time.perf_counter() - began) / len(group)
            # All of a group before the first is written: it would be another program without it.
            made = [
                _finish(row, run, outcome, row_costs or {}, seconds, workdir)
                for run, outcome in zip(group, outcomes, strict=True)
            ]
            for run, (record, arrays) in zip(group, made, strict=True):
                records.write(records.run_dir(workdir, run.digest), record, arrays)
                finished[run.digest] = record
            trained = zip(group, outcomes, strict=True)
            if all(outcome.error or _ok(finished[run.digest]) for run, outcome in trained):
                train.discard(_folder(workdir, group))
            known = gather()
    return known


def _said(error: Exception) -> str:
    """An error in a line, and then where it came from."""
    first = f"{type(error).__name__}: {error}".strip().partition("\n")[0]
    return f"{first}\n{traceback.format_exc()}"


def _finish(row: Row, run: Run, outcome: train.Outcome, row_costs, seconds: float, workdir: Path):
    """Keeps the weights, and returns record and arrays: of a failure, if what follows training fails."""
    try:
        _keep(row, run, outcome, workdir)
        return _record(row, run, outcome, row_costs, seconds)
    except Exception as error:  # a full disk, an answer that cannot be scored: the other rows go on
        return _record(row, run, outcome._replace(error=_said(error)), row_costs, seconds)


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
    with checkpoints(group[0].config["checkpoint"], folder, _name(group)) as saved:
        return train.fit(program, [run.seed for run in group], saved, report)


def _name(group: Sequence[Run]) -> str:
    return config.digest([run.digest for run in group]) if len(group) > 1 else group[0].digest


def _folder(workdir: Path, group: Sequence[Run]) -> Path:
    return records.run_dir(workdir, _name(group)) / "checkpoints"


def _keep(row: Row, run: Run, outcome: train.Outcome, workdir: Path) -> None:
    """Leaves a run's weights, and what its inputs are read by, beside its record and before it."""
    if outcome.error or not row.program.config.keep_weights:
        return
    folder = records.run_dir(workdir, run.digest)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in row.program.task.files.items():
        records.replace(folder / name, lambda file, text=text: file.write(text.encode()))
    path = folder / records.WEIGHTS
    told = {"digest": run.digest, "seed": run.seed, "step": outcome.step}
    told["vocabulary"] = row.program.task.vocabulary
    weights.save(path, outcome.theta, **told)


def _record(row: Row, run: Run, outcome: train.Outcome, row_costs: dict, seconds: float):
    record = {
        "row": run.row,
        "seed": run.seed,
        "status": "failed" if outcome.error else "ok",
        "digest": run.digest,
        "metric": (row.program.task.headline or row.program.task.metric)._asdict(),
        "metrics": {},
        "data": row.program.task.told,
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
    judged = {"validation": program.task.validation, "test": program.task.test}
    for name, split in (judged | program.task.others).items():
        predicted = train.evaluate(program, outcome.theta, split)
        found = tasks.score(program.task, split, predicted)
        record["metrics"] |= {f"{name}_{key}": value for key, value in found.items()}
        if name == "test":
            labelled = split.labels >= 0
            arrays = {"loss": predicted.losses}
            if not program.task.regression:
                correct = predicted.labels == split.labels
                arrays |= {"correct": correct[labelled], "label": split.labels[labelled]}
    if program.task.writing is not None:
        found = program.task.judge(written(program, outcome.theta))
        record["metrics"] |= {f"test_{key}": value for key, value in found.items()}
    baselines = program.task.baselines()
    record["metrics"] |= {f"baseline_{key}": value for key, value in baselines.items()}
    record["metrics"]["step"] = outcome.step
    # How much is zero may depend on what was learned, and on when a run stopped.
    record["costs"] = row_costs | {"stored_bytes": weights.sizes(outcome.theta).bytes}
    return record, arrays
