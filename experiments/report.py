"""Prints the table of an ablation, and writes `table.md`, `table.csv` and `pareto.png`.

    python -m experiments.report --workdir=runs/first

Everything comes from `results.jsonl` alone, so anybody who has that file can redraw the rest.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from absl import app, flags

from experiments.pareto import COSTS, figure, front
from experiments.table import markdown, terminal
from tinyattn import records, stats
from tinyattn.cost import COLUMNS
from tinyattn.tasks import ACCURACY, Metric

__all__ = ["figure", "figure_costs", "front", "markdown", "publish", "summarise", "terminal"]

NAN = float("nan")


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Reduces runs to one line a row, in table order; the first row is the baseline.

    A score is what the runs' own `metric` names; shares are in percent and their differences in
    percentage points, both with the half-width of a 95% t interval. `budget_residual` is a share of the
    budget. Differences and p-values come from the seeds that a row shares with the baseline;
    `unpaired_seeds` names the others. Costs are in base units: the mean over seeds, and `<cost>_min` and
    `<cost>_max` beside it for a cost that varies over the seeds of some row.

    Args:
        frame: what `records.load` returns.

    Raises:
        ValueError: a row has the same seed twice, or rows have several metrics.
    """
    twice = frame.loc[frame.duplicated(["row", "seed"]), ["row", "seed"]].values.tolist()
    if twice:
        raise ValueError(f"runs listed twice: {twice}; keep one line a row and seed")
    metric = _metric(frame)
    baseline = _scores(frame[frame["row"] == frame["row"].iloc[0]], metric)
    lines = []
    for number, (row, runs) in enumerate(frame.groupby("row", sort=False)):
        scores = _scores(runs, metric)
        mean, half_width = stats.t_interval(scores) if len(scores) else (NAN, NAN)
        line = {
            "row": row,
            "simulated": bool("simulated" in runs and runs["simulated"].eq(True).any()),
            "activations": _activations(runs),
            "runs": len(runs),
            "seeds": len(scores),
            "failure": _failure(runs, len(scores), metric),
            "metric": metric.name,
            "higher": metric.higher,
            "percent": metric.percent,
            "score": mean,
            "score_half_width": half_width,
            "budget_residual": _residual(runs),
        }
        line |= _against(baseline, scores if number else scores[:0])
        lines.append(line | _costs(runs))
    summary = pd.DataFrame(lines)
    tested = summary["p"].notna()
    summary.insert(summary.columns.get_loc("p") + 1, "p_holm", NAN)
    summary.loc[tested, "p_holm"] = stats.holm(summary.loc[tested, "p"])
    if summary["budget_residual"].isna().all():
        summary = summary.drop(columns="budget_residual")
    if summary["activations"].eq("float").all():
        summary = summary.drop(columns="activations")
    constant = [name for name in summary if name.endswith(("_min", "_max"))]
    constant = [name for name in constant if summary[name].equals(summary[name[:-4]])]
    return summary.drop(columns=constant)


def publish(workdir: str | Path) -> pd.DataFrame:
    """Writes `table.md`, `table.csv` and `pareto.png` beside `results.jsonl`; returns the summary.

    Raises:
        ValueError: there is no readable `results.jsonl`.
    """
    workdir = Path(workdir)
    frame = records.load(workdir)
    summary = summarise(frame)
    (workdir / "table.md").write_text(markdown(summary), encoding="utf-8")
    # Whole numbers without ".0", and every digit that a count of operations can have.
    summary.to_csv(workdir / "table.csv", index=False, float_format="%.15g")
    figure(summary, workdir / "pareto.png", figure_costs(frame))
    return summary


def figure_costs(frame: pd.DataFrame) -> Sequence[str]:
    """Returns the two costs that the table's base names for the figure, or the usual two."""
    return (frame["figure"].iloc[0] if "figure" in frame else ()) or COSTS


def _metric(frame: pd.DataFrame) -> Metric:
    """Returns what the runs are compared by, which all of a table's runs must share.

    Raises:
        ValueError: they do not.
    """
    names = [f"metric.{field}" for field in Metric._fields]
    if "metric.name" not in frame:  # of before a record said so
        return ACCURACY
    found = frame[names].dropna().drop_duplicates()
    if len(found) > 1:
        raise ValueError(
            f"rows are compared by {', '.join(found['metric.name'])}: give each its own table"
        )
    return Metric(*found.iloc[0].tolist()) if len(found) else ACCURACY


def _scores(runs: pd.DataFrame, metric: Metric) -> pd.Series:
    """Returns the test score of the finished runs, a share in percent, indexed by seed."""
    name = f"metrics.test_{metric.name}"
    if name not in runs:
        return pd.Series(dtype=float)
    finished = runs[runs["status"] == "ok"].set_index("seed")
    return (100 if metric.percent else 1) * finished[name].astype(float).dropna()


def _activations(runs: pd.DataFrame) -> str:
    """Returns what a row's affine layers read."""
    name = "config.model.activations"
    return runs[name].iloc[0] if name in runs else "float"


def _residual(runs: pd.DataFrame) -> float:
    """Returns by what share a row is off the budget of its table; NaN where there is none."""
    name = "budget.residual"
    return float(runs[name].iloc[0]) if name in runs else NAN


def _against(baseline: pd.Series, scores: pd.Series) -> dict:
    """Compares a row with the baseline on the seeds that both have finished."""
    shared = baseline.index.intersection(scores.index)
    unpaired = baseline.index.symmetric_difference(scores.index)
    mean = half_width = p = NAN
    if len(shared):
        mean, half_width, _, differences = stats.paired(scores[shared], baseline[shared])
        p = stats.sign_flip(differences) if len(shared) <= stats.MAX_FLIPS else NAN
    return {
        "difference": mean,
        "difference_half_width": half_width,
        "pairs": len(shared),
        "unpaired_seeds": ", ".join(map(str, unpaired)) if len(shared) else "",
        "p": p,
    }


def _failure(runs: pd.DataFrame, finished: int, metric: Metric) -> str:
    """Says how many seeds failed and why, each reason once; nothing where all have finished."""
    if finished == len(runs):
        return ""
    errors = runs["error"].dropna() if "error" in runs else []
    reasons = dict.fromkeys(str(error).strip().partition("\n")[0] for error in errors)
    reason = "; ".join(reasons) or f"no test {metric.name} in the record"
    return f"{len(runs) - finished} of {len(runs)} failed: {reason}"


def _costs(runs: pd.DataFrame) -> dict[str, float]:
    costs = {}
    for column in COLUMNS:
        # A cost that means nothing for a row, as a decoder's state for an encoder, is null.
        if (name := f"costs.{column.key}") in runs and runs[name].notna().any():
            values = runs[name].astype(float)
            low, high = values.min(), values.max()
            # The mean of equal numbers may differ from them by rounding.
            costs[column.key] = low if low == high else values.mean()
            costs |= {f"{column.key}_min": low, f"{column.key}_max": high}
    return costs


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; the only flag is --workdir=DIR")
    try:
        print(terminal(publish(flags.FLAGS.workdir)))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    # Not at import: the ablate program, which imports this one, has a --workdir of its own.
    flags.DEFINE_string("workdir", None, "Directory that holds results.jsonl.", required=True)
    app.run(main)
