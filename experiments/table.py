"""Sets the summary of an ablation as text: Markdown with every column, or what a terminal holds."""

import math
import textwrap

import pandas as pd
from tabulate import tabulate

from tinyattn import stats
from tinyattn.cost import COLUMNS, CONVENTION, Column

LEVEL = 0.05
TERMINAL = 120  # characters
# A terminal holds six of them beside score, difference and p: the last six that a table has.
TERMINAL_COSTS = (
    "useful_flops",
    "executed_flops",
    "training_flops",
    "trainable_params",
    "stored_bytes",
    "decode_state_bytes",
    "latency_ratio",
)
ROUNDED = (
    "‡ activations rounded to few integers, in float arithmetic: latency and bytes of activations are "
    "those of floats."
)
# Words of metrics' names as their fields write them.
SPELLED = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "f1": "F1",
    "pearson": "Pearson",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "spearman": "Spearman",
}
SYMBOLS = {"bytes": "B", "seconds": "s"}
PREFIXES = {-9: "n", -6: "µ", -3: "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P"}


def markdown(summary: pd.DataFrame) -> str:
    """Returns the table with all its columns and its legend, in Markdown."""
    costs = [column for column in COLUMNS if column.key in summary]
    heads = ["row", *title(summary), "p (Holm)", "seeds"]
    heads += ["off budget"] * ("budget_residual" in summary)
    heads += [heading(column) for column in costs]
    cells = []
    for line in summary.to_dict("records"):
        row, *leading = _leading(line, summary["seeds"].max())
        seeds = f"{line['seeds']}" + f" of {line['runs']}" * (line["seeds"] < line["runs"])
        cells.append([row.replace("|", "\\|"), *leading, seeds, *_off(line), *_costs(line, costs)])
    legend = notes(summary)
    for column in costs:
        unit = "" if column.unit == "1" else f" ({column.unit})"
        legend.append(f"{heading(column)}{unit}: {column.description}")
    align = ["left"] + ["right"] * (len(heads) - 1)
    table = tabulate(cells, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
    return "\n".join([table, "", *(f"- {line}" for line in legend), ""])


def terminal(summary: pd.DataFrame) -> str:
    """Returns the main columns and the notes, at most some 120 characters wide."""
    costs = [column for column in COLUMNS if column.key in summary]
    costs = [column for column in costs if column.key in TERMINAL_COSTS][-6:]
    heads = ["row", *(name.replace(" ", "\n", 1) for name in (*title(summary), "p (Holm)"))]
    heads += ["off\nbudget"] * ("budget_residual" in summary)
    heads += ["\n".join(heading(column).split()[:2]) for column in costs]
    # Set as a row of the body: tabulate pads every heading by two columns that are dear here.
    cells = [heads]
    for line in summary.to_dict("records"):
        row, *leading = _leading(line, summary["seeds"].max())
        cells.append([textwrap.fill(row, 22), *leading, *_off(line), *_costs(line, costs)])
    align = ["left"] + ["right"] * (len(heads) - 1)
    lines = tabulate(cells, tablefmt="plain", colalign=align, disable_numparse=True).splitlines()
    rule = "─" * max(map(len, lines))
    said = (textwrap.fill(note, TERMINAL, subsequent_indent="  ") for note in notes(summary))
    return "\n".join([*lines[:2], rule, *lines[2:], rule, *said])


def title(summary: pd.DataFrame) -> tuple[str, str]:
    """Returns the headings of the score and of the differences between scores."""
    first = summary.iloc[0]
    name = f"test {spelled(first['metric'])}"
    arrow = "" if first["higher"] else " ↓"
    return (f"{name}, %", "Δ, points") if first["percent"] else (f"{name}{arrow}", "Δ")


def notes(summary: pd.DataFrame) -> list[str]:
    """Returns what a reader must know beside the numbers: conventions, tests, failures."""
    most, higher = summary["seeds"].max(), summary["higher"].iloc[0]
    name = spelled(summary["metric"].iloc[0], start=True)
    said = [
        f"{CONVENTION} 1 k = 1000, 1 kB = 1000 bytes.",
        f"{name}: mean over n={most} seeds unless the row says otherwise, ± half the width of "
        f"its 95% t interval; a single seed has none.{' Less is better.' * (not higher)}"
        if most
        else f"{name}: none, because no run has finished.",
        *_comparison_notes(summary),
    ]
    if "budget_residual" in summary:
        said.append("Off budget: by what share a row's cost misses what its table allows.")
    if summary["simulated"].any():
        said.append(
            "† simulated: the sparsity is a mask over a dense product, so the work between useful "
            "and executed FLOPs is done, not saved."
        )
    if "activations" in summary:
        said.append(ROUNDED)
    said += [
        f"{row}: {failure}."
        for row, failure in zip(summary["row"], summary["failure"], strict=True)
        if failure
    ]
    return said


def _comparison_notes(summary: pd.DataFrame) -> list[str]:
    baseline, pairs = summary["row"].iloc[0], int(summary["pairs"].max())
    if pairs == 0:
        missing = f"Δ: none, because {baseline} shares no finished seed with another row."
        return [missing] if len(summary) > 1 else []
    said = [f"Δ: difference to {baseline}, paired by seed, ± half the width of its 95% t interval."]
    tests = int(summary["p"].notna().sum())
    if tests:
        smallest = stats.smallest_p(pairs)
        said.append(
            "p: exact two-sided sign-flip test over the pairs, adjusted by Holm for the "
            f"{tests} comparisons of this table; n.s.: not significant at {LEVEL}."
        )
        if tests * smallest >= LEVEL:
            fewest = next(n for n in range(1, 99) if tests * stats.smallest_p(n) < LEVEL)
            said.append(
                f"Nothing can be significant at n={pairs}: the smallest possible p is "
                f"{smallest:.3g}, adjusted {min(1, tests * smallest):.3g}. At least {fewest} seeds "
                "are needed."
            )
    partial = summary[summary["unpaired_seeds"] != ""]
    for (shared, seeds), rows in partial.groupby(["pairs", "unpaired_seeds"], sort=False):
        said.append(
            f"{', '.join(rows['row'])}: Δ and p over the seeds shared with {baseline}, n={shared}; "
            f"missing in one of the two: {seeds}."
        )
    return said


def human(value: float, unit: str) -> str:
    """Returns a number to three significant digits with its decimal prefix, and its SI symbol.

    >>> human(48_600, "bytes"), human(1_234_000, "parameters"), human(0.0021, "seconds")
    ('48.6 kB', '1.23 M', '2.10 ms')
    """
    if not math.isfinite(value):
        return "—"
    if unit == "1":
        return f"{value:.2f}×"
    symbol = SYMBOLS.get(unit, "")
    exponent = int(f"{value:.2e}".partition("e")[2])  # of the rounded number: 999.9 k is 1.00 M
    power = exponent // 3 * 3
    if power not in PREFIXES:
        return f"{value:.3g} {symbol}".rstrip()
    digits = 0 if power == 0 and value == int(value) else 2 - (exponent - power)
    return f"{value / 10.0**power:.{digits}f} {PREFIXES[power]}{symbol}".rstrip()


def spelled(metric: str, start: bool = False) -> str:
    """Returns the name of a metric in words, with a capital at the start of a sentence.

    >>> spelled("span_f1"), spelled("span_f1", start=True), spelled("chrf", start=True)
    ('span F1', 'Span F1', 'chrF')
    """
    first, *rest = metric.split("_")
    first = SPELLED.get(first, first.capitalize() if start else first)
    return " ".join([first, *(SPELLED.get(word, word) for word in rest)])


def heading(column: Column) -> str:
    """Returns the words of the column's key, so that table, CSV and records name a cost alike."""
    return column.key.replace("_", " ").replace("flops", "FLOPs")


def marked(line: dict) -> str:
    """Returns the row's name with the marks that the notes explain."""
    rounded = line.get("activations", "float") != "float"
    return line["row"] + " †" * line["simulated"] + " ‡" * rounded


def _leading(line: dict, most_seeds: int) -> list[str]:
    """Returns the row's name and the cells that do not come from the cost vector."""
    score = _plus_minus(line["score"], line["score_half_width"])
    if line["seeds"] == 0:
        score = "failed"
    elif line["seeds"] < most_seeds:
        score += f" (n={line['seeds']})"
    difference = _plus_minus(line["difference"], line["difference_half_width"], "+")
    p = "—"
    if not math.isnan(line["p_holm"]):
        p = f"{line['p_holm']:.2g}" + " n.s." * (line["p_holm"] >= LEVEL)
    return [marked(line), score, difference, p]


def _off(line: dict) -> list[str]:
    """Returns by how much a row is off its budget, where the table has one."""
    if "budget_residual" not in line:
        return []
    share = line["budget_residual"]
    return ["—" if math.isnan(share) else f"{100 * share:+.2f}%".replace("-", "−")]


def _plus_minus(mean: float, half_width: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "—"
    text = f"{mean:{sign}.2f}".replace("-", "−")
    return text if math.isnan(half_width) else f"{text} ± {half_width:.2f}"


def _costs(line: dict, costs: list[Column]) -> list[str]:
    """Returns the cells of the cost vector; a cost that differs between seeds as its range."""
    cells = []
    for key, unit in ((column.key, column.unit) for column in costs):
        low, high = (human(line.get(f"{key}_{end}", line[key]), unit) for end in ("min", "max"))
        cells.append(low if low == high else f"{low}–{high}")
    return cells
