"""Prints the table of an ablation, and writes `table.md`, `table.csv` and `pareto.png`.

    python -m experiments.report --workdir=runs/first

Everything comes from `results.jsonl` alone, so anybody who has that file can redraw the rest.
"""

import math
from pathlib import Path

import pandas as pd
from absl import app, flags
from tabulate import tabulate

from experiments import pareto
from tinyattn import records, stats
from tinyattn.cost import COLUMNS, CONVENTION

ACCURACY = "metrics.test_accuracy"
LEVEL = 0.05
# What fits a terminal of 120 characters beside accuracy, difference and p.
TERMINAL_COSTS = (
    "useful_flops",
    "executed_flops",
    "training_flops",
    "trainable_params",
    "stored_bytes",
    "latency_ratio",
)
PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}
figure = pareto.figure


def summarise(frame: pd.DataFrame) -> pd.DataFrame:
    """Reduces runs to one line a row, in table order; the first row is the baseline.

    Accuracies are in percent and differences in percentage points, both with the half-width of a
    95% t interval. Differences and p-values come from the seeds that a row shares with the
    baseline; `unpaired_seeds` names the others. Costs are in base units: the mean over seeds,
    and beside it `<cost>_min` and `<cost>_max` for a cost that varies over the seeds of some row.

    Args:
        frame: what `records.load` returns.

    Raises:
        ValueError: a row has the same seed twice.
    """
    if frame.duplicated(["row", "seed"]).any():
        twice = frame[frame.duplicated(["row", "seed"])][["row", "seed"]].values.tolist()
        raise ValueError(f"runs listed twice: {twice}; gather the results again")
    groups = list(frame.groupby("row", sort=False))
    baseline = _accuracies(groups[0][1])
    lines = []
    for number, (row, runs) in enumerate(groups):
        accuracies = _accuracies(runs)
        line = {
            "row": row,
            "simulated": bool("simulated" in runs and runs["simulated"].eq(True).any()),
            "runs": len(runs),
            "seeds": len(accuracies),
            "failure": _failure(runs, len(accuracies)),
        }
        line["accuracy_percent"], line["accuracy_half_width"] = _interval(accuracies)
        line |= _against(baseline, accuracies, is_baseline=number == 0)
        lines.append(line | _costs(runs))
    summary = pd.DataFrame(lines)
    tested = summary["p"].notna()
    summary.insert(summary.columns.get_loc("p") + 1, "p_holm", float("nan"))
    summary.loc[tested, "p_holm"] = stats.holm(summary.loc[tested, "p"])
    for column in COLUMNS:  # the range only where there is one
        low, high = f"{column.key}_min", f"{column.key}_max"
        if low in summary and not _varies(summary[low], summary[high]).any():
            summary = summary.drop(columns=[low, high])
    return summary


def markdown(summary: pd.DataFrame) -> str:
    """Returns the table with all its columns and its legend, in Markdown."""
    costs = [column for column in COLUMNS if column.key in summary]
    heads = ["row", "seeds", "test accuracy, %", "Δ, points", "p (Holm)"]
    heads += [column.heading for column in costs]
    cells = []
    for line in summary.to_dict("records"):
        name, accuracy, difference, p = _leading(line)
        seeds = str(line["runs"])
        if line["seeds"] < line["runs"]:
            seeds = f"{line['seeds']} of {line['runs']}"
        head = [name.replace("|", "\\|"), seeds, accuracy, difference, p]
        cells.append(head + [_cost(line, column) for column in costs])
    align = ["left"] + ["right"] * (len(heads) - 1)
    table = tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
    legend = [*notes(summary), *(f"{column.heading}: {column.description}" for column in costs)]
    return "\n".join([table, "", *(f"- {sentence}" for sentence in legend), ""])


def terminal(summary: pd.DataFrame) -> str:
    """Returns the main columns and the notes, 120 characters wide."""
    costs = [column for column in COLUMNS if column.key in summary]
    costs = [column for column in costs if column.key in TERMINAL_COSTS]
    heads = ["row", "test\naccuracy, %", "Δ,\npoints", "p\n(Holm)"]
    heads += ["\n".join(column.heading.split(maxsplit=1)) for column in costs]
    cells = [
        [*_leading(line), *(_cost(line, column) for column in costs)]
        for line in summary.to_dict("records")
    ]
    table = tabulate(
        cells,
        heads,
        tablefmt="simple",
        colalign=["left"] + ["right"] * (len(heads) - 1),
        maxcolwidths=[26] + [None] * (len(heads) - 1),
        disable_numparse=True,
    )
    return "\n".join([table, "", *notes(summary)])


def notes(summary: pd.DataFrame) -> list[str]:
    """Returns what a reader must know beside the numbers: convention, test, failures."""
    base, most = summary["row"].iloc[0], summary["seeds"].max()
    said = [
        CONVENTION,
        f"Accuracy: mean over {most} seeds unless a row says otherwise, ± the half-width of its "
        "95% t interval. 1 k = 1000, 1 kB = 1000 bytes.",
    ]
    tests = int(summary["p"].notna().sum())
    if tests:
        pairs = int(summary["pairs"].max())
        best = stats.smallest_p(pairs)
        said.append(
            f"Δ: difference to {base}, paired by seed, with its 95% t interval. p: exact two-sided "
            f"sign-flip test, adjusted by Holm for {tests} comparisons; n.s.: not significant at "
            f"{LEVEL}. At n={pairs} the smallest possible p is {best:.3g}, adjusted "
            f"{min(1, tests * best):.3g}"
            + _remedy(best, tests)
        )
    elif len(summary) > 1:
        said.append(f"Δ: none, because {base} shares no finished seed with another row.")
    if summary["simulated"].any():
        said.append(
            "† simulated: the sparsity is a mask over a dense product, so the work between useful "
            "and executed FLOPs is done, not saved."
        )
    for line in summary.to_dict("records"):
        if line["failure"]:
            said.append(f"{line['row']}: {line['failure']}.")
        if line["unpaired_seeds"] and line["pairs"]:
            said.append(
                f"{line['row']}: Δ and p from {line['pairs']} seeds; not in both rows: "
                f"{line['unpaired_seeds']}."
            )
    return said


def publish(workdir: str | Path) -> pd.DataFrame:
    """Writes `table.md`, `table.csv` and `pareto.png` beside `results.jsonl`; returns the summary.

    Raises:
        ValueError: there is no readable `results.jsonl`.
    """
    workdir = Path(workdir)
    summary = summarise(records.load(workdir))
    (workdir / "table.md").write_text(markdown(summary), encoding="utf-8")
    summary.to_csv(workdir / "table.csv", index=False)
    figure(summary, workdir / "pareto.png")
    return summary


def human(value: float, unit: str) -> str:
    """Returns a number to three significant digits with its decimal prefix.

    >>> human(48_600, "bytes"), human(1_234_000, "FLOPs"), human(0.0021, "seconds")
    ('48.6 kB', '1.23 M', '2.10 ms')
    """
    if not math.isfinite(value):
        return "—"
    if unit == "ratio":
        return f"{value:.2f}×"
    symbol = {"bytes": "B", "seconds": "s"}.get(unit, "")
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded number: 999.9 is 1.00 k
    power = exponent // 3 * 3
    if power not in PREFIXES:
        return f"{value:.3g} {symbol}".rstrip()
    digits = 0 if power == 0 and value == int(value) else 2 - (exponent - power)
    return f"{value / 10.0**power:.{digits}f} {PREFIXES[power]}{symbol}".rstrip()


def _accuracies(runs: pd.DataFrame) -> pd.Series:
    """Returns the test accuracy in percent of the finished runs, indexed by seed."""
    if ACCURACY not in runs:
        return pd.Series(dtype=float)
    finished = runs[runs["status"] == "ok"].set_index("seed")
    return 100 * finished[ACCURACY].astype(float).dropna()


def _interval(accuracies: pd.Series) -> tuple[float, float]:
    return stats.t_interval(accuracies) if len(accuracies) else (float("nan"), float("nan"))


def _against(baseline: pd.Series, accuracies: pd.Series, is_baseline: bool) -> dict:
    """Compares a row with the baseline on the seeds that both have finished."""
    nan = float("nan")
    shared = baseline.index.intersection(accuracies.index)
    unpaired = baseline.index.symmetric_difference(accuracies.index)
    mean = half_width = p = nan
    if len(shared) and not is_baseline:
        mean, half_width, _, differences = stats.paired(accuracies[shared], baseline[shared])
        p = stats.sign_flip(differences) if len(shared) <= stats.MAX_FLIPS else nan
    return {
        "difference_points": mean,
        "difference_half_width": half_width,
        "pairs": 0 if is_baseline else len(shared),
        "unpaired_seeds": ", ".join(map(str, unpaired)),
        "p": p,
    }


def _failure(runs: pd.DataFrame, finished: int) -> str:
    if finished == len(runs):
        return ""
    errors = runs["error"].dropna() if "error" in runs else pd.Series(dtype=str)
    first_lines = dict.fromkeys(str(error).strip().partition("\n")[0] for error in errors)
    reason = "; ".join(first_lines) or "no test accuracy in the record"
    return f"{len(runs) - finished} of {len(runs)} failed: {reason}"


def _costs(runs: pd.DataFrame) -> dict[str, float]:
    costs = {}
    for column in COLUMNS:
        if (name := f"costs.{column.key}") in runs:
            values = runs[name].astype(float)
            costs[column.key] = values.mean()
            costs[f"{column.key}_min"], costs[f"{column.key}_max"] = values.min(), values.max()
    return costs


def _varies(low: pd.Series | float, high: pd.Series | float) -> pd.Series | bool:
    return high - low > 1e-9 * abs(high)


def _leading(line: dict) -> list[str]:
    """Returns the cells that do not come from the cost vector."""
    if line["seeds"] == 0:
        accuracy = "failed"
    else:
        accuracy = _plus_minus(line["accuracy_percent"], line["accuracy_half_width"])
        if line["seeds"] < line["runs"]:
            accuracy += f" (n={line['seeds']})"
    difference = _plus_minus(line["difference_points"], line["difference_half_width"], "+")
    p = "—"
    if not math.isnan(line["p_holm"]):
        p = f"{line['p_holm']:.2g}" + ("" if line["p_holm"] < LEVEL else " n.s.")
    return [line["row"] + " †" * line["simulated"], accuracy, difference, p]


def _plus_minus(mean: float, half_width: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "—"
    text = f"{mean:{sign}.2f}".replace("-", "−")
    return text if math.isnan(half_width) else f"{text} ± {half_width:.2f}"


def _cost(line: dict, column) -> str:
    low, high = (line.get(f"{column.key}_{end}", line[column.key]) for end in ("min", "max"))
    if _varies(low, high):
        return f"{human(low, column.unit)}–{human(high, column.unit)}"
    return human(line[column.key], column.unit)


def _remedy(best: float, tests: int) -> str:
    """Says how many seeds it takes, where no row can be significant with those there are."""
    if tests * best < LEVEL:
        return "."
    needed = next(n for n in range(1, 99) if tests * stats.smallest_p(n) < LEVEL)
    return f": no row of this table can be significant, and {needed} seeds are the fewest that could."


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; the only flag is --workdir=DIR")
    try:
        print(terminal(publish(WORKDIR.value)))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    WORKDIR = flags.DEFINE_string("workdir", None, "Directory that holds results.jsonl.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
