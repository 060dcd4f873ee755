"""The loop around the step: dispatches, evaluations, early stopping, checkpoints."""

import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn.checkpoint import Checkpoints
from tinyattn.tasks import Metric, score
from tinyattn.train._evaluate import evaluate
from tinyattn.train._interrupts import Interrupts
from tinyattn.train._step import Program, batches


class Progress(NamedTuple):
    """What a progress bar shows after each dispatch.

    Attributes:
      step: Updates made.
      steps: Updates in all.
      stride: Updates made by the dispatch.
      loss: Mean training loss over the dispatch.
      accuracy: Training accuracy over the dispatch (a share); NaN of a regression.
      validation: The latest validation split's `metric`; NaN before the first.
      metric: What decides which weights are best.
    """

    step: int
    steps: int
    stride: int
    loss: float
    accuracy: float
    validation: float
    metric: Metric


class Outcome(NamedTuple):
    """How one seed ended.

    Attributes:
      seed: Its seed.
      theta: The weights that count, as NumPy arrays; None if the run failed.
      step: The step they are of.
      history: One dict an evaluation.
      error: Why the run failed; None if it did not.
    """

    seed: int
    theta: Any
    step: int
    history: list[dict[str, float]]
    error: str | None


def fit(
    program: Program,
    seeds: Sequence[int],
    checkpoints: Checkpoints,
    report: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Trains seeds side by side (usually one), from the last good checkpoint if there is one.

    A non-finite loss ends that seed alone. An interrupt (Ctrl-C) waits for the end of the dispatch
    and saves; a second one does not wait.

    Args:
      program: Of the config that all seeds share.
      seeds: Each is initialisation, data order and per-step randomness.
      checkpoints: Where to save and resume.
      report: Called after each dispatch.

    Returns:
      One outcome a seed, in order.

    Raises:
      KeyboardInterrupt: Ctrl-C, once the run is saved.
    """
    config, task = program.config, program.task
    many = len(seeds) > 1
    states = [program.init(seed) for seed in seeds]
    state = jax.tree.map(lambda *x: jnp.stack(x), *states) if many else states[0]
    best = _copy(state.theta) if config.patience else None
    runs = [_Run() for _ in seeds]
    if restored := checkpoints.restore({"state": state, "best": best}):
        _, saved, meta = restored
        state, best = jax.tree.map(jnp.asarray, saved["state"]), saved["best"]
        runs = [_Run(**fields) for fields in meta["runs"]]
    data = jax.tree.map(jnp.asarray, task.train)
    step = int(np.ravel(state.step)[0])

    def save():
        meta = {"runs": [run._asdict() for run in runs]}
        checkpoints.save(step, {"state": state, "best": best}, meta)

    with Interrupts() as interrupts:
        while step < config.steps and any(run.running for run in runs):
            until = _next_stop(step, config)
            rows = [
                batches(seed, len(task.train.labels), config.batch_size, step, until - step)
                for seed in seeds
            ]
            run_program = program.run_many if many else program.run
            state, sums = run_program(state, data, jnp.asarray(np.stack(rows) if many else rows[0]))
            sums = jax.tree.map(lambda x: np.asarray(x).reshape(len(seeds), -1), sums)
            step, first = until, step
            for i, run in enumerate(runs):
                if run.running and not np.isfinite(sums.loss[i]).all():
                    bad = first + int(np.flatnonzero(~np.isfinite(sums.loss[i]))[0])
                    runs[i] = run._replace(error=_diverged("loss", bad))
            if step == config.steps or (config.eval_every and step % config.eval_every == 0):
                for i, run in enumerate(runs):
                    if run.running:
                        theta = _pick(state.theta, i) if many else state.theta
                        runs[i], better = _evaluated(run, program, theta, step)
                        if better and best is not None:
                            best = _put(best, theta, i) if many else _copy(theta)
            loss, correct, count = (float(x.sum()) for x in sums)
            name = f"validation_{task.metric.name}"
            latest = [run.history[-1][name] for run in runs if run.history]
            validation = float(np.mean(latest)) if latest else float("nan")
            right = float("nan") if task.regression else correct / count
            shares = loss / count, right, validation
            try:
                report(Progress(step, config.steps, step - first, *shares, task.metric))
            except KeyboardInterrupt:
                interrupts.pending = True
            if interrupts.pending or (step < config.steps and checkpoints.due()):
                save()
            if interrupts.pending:
                raise KeyboardInterrupt

    checkpoints.close()
    final = best if config.patience else _copy(state.theta)
    return [
        Outcome(
            seed=seed,
            theta=None if run.error else (_pick(final, i) if many else final),
            step=run.best_step if config.patience else step,
            history=run.history,
            error=run.error,
        )
        for i, (seed, run) in enumerate(zip(seeds, runs, strict=True))
    ]


def discard(directory: Path) -> None:
    """Removes the checkpoints of a run that has its record."""
    shutil.rmtree(directory, ignore_errors=True)


class _Run(NamedTuple):
    """What the host remembers of one seed; kept with the checkpoint."""

    history: list[dict[str, float]] = []
    best_step: int = 0
    best: tuple[float, float] | None = None
    since_best: int = 0
    stopped: bool = False
    error: str | None = None

    @property
    def running(self) -> bool:
        return not self.stopped and self.error is None


def _evaluated(run: _Run, program: Program, theta, step: int) -> tuple[_Run, bool]:
    """The run after an evaluation, and whether its weights are the best so far."""
    metric, split = program.task.metric, program.task.validation
    found = score(program.task, split, evaluate(program, theta, split))
    names = [name for name in found if name in ("accuracy", "loss", metric.name)]
    entry = {"step": step} | {f"validation_{name}": found[name] for name in names}
    run = run._replace(history=[*run.history, entry])
    if not np.isfinite(found["loss"]):
        return run._replace(error=_diverged("validation loss", step)), False
    # Few validation examples tie often; the loss decides.
    rank = (found[metric.name] * (1 if metric.higher else -1), -found["loss"])
    if run.best is None or rank > tuple(run.best):
        return run._replace(best_step=step, best=rank, since_best=0), True
    since = run.since_best + 1
    patience = program.config.patience
    return run._replace(since_best=since, stopped=bool(patience) and since >= patience), False


def _diverged(what: str, step: int) -> str:
    return f"non-finite {what} at step {step}: lower optim.learning_rate, or set optim.clip_norm"


def _next_stop(step: int, config) -> int:
    until = min(step + _stride(config), config.steps)
    if config.eval_every:
        until = min(until, (step // config.eval_every + 1) * config.eval_every)
    return until


def _stride(config) -> int:
    """Steps a dispatch: fewer than set where all dispatches are then equal and compile once."""
    most = config.steps_per_dispatch
    between = math.gcd(config.steps, config.eval_every)
    even = max(k for k in range(1, most + 1) if between % k == 0)
    return even if 2 * even >= most else most


def _copy(tree):
    """To the host, as arrays that survive the donation of the state."""
    return jax.tree.map(lambda x: np.array(x), tree)


def _pick(tree, i: int):
    return jax.tree.map(lambda x: x[i], tree)


def _put(tree, new, i: int):
    def put(x, y):
        x = x.copy()
        x[i] = y
        return x

    return jax.tree.map(put, tree, new)
