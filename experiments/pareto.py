"""Draws scores against two costs: executed FLOPs on the left, stored bytes on the right, or others.

Rows of an ablation often cost exactly the same and score nearly the same, so labels beside their
points would lie on top of each other. They stand in one column between the panels instead,
the best on top. Each leader line runs level from its point to the edge of the panel and
only then bends to its label, so the leaders of two rows never cross. Rows whose names differ in
the number after a last `=` alone are points of one curve.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import (
    EngFormatter,
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
)

from experiments.places import score_range, spread
from experiments.table import ROUNDED, SYMBOLS, heading, marked, spelled, title
from tinyattn.cost import columns

COSTS = ("executed_flops", "stored_bytes")
# Okabe and Ito's colours, told apart with any colour vision, but grey for the yellow that fades on
# white. Their number and that of the markers share no factor: 120 rows before a pair repeats.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "black", "#7F7F7F")
MARKERS = "os^DvX<p>hP*d8H"
DPI, FONT = 150, 9.0  # dots an inch, points
# Inches: the page and its margins, a line of labels or of the caption, the room of a leader that
# bends, and the space between a label and its marker.
WIDTH, SIDE, TOP, BOTTOM, LINE, GUTTER, PAD = 10.0, 0.75, 0.45, 0.6, 0.19, 0.4, 0.15


def figure(
    summary: pd.DataFrame, path: str | Path | None = None, costs: Sequence[str] = COSTS
) -> Figure:
    """Draws a panel for each of two costs from what `report.summarise` returns.

    The figure is made without pyplot, so a notebook keeps its own backend.

    Args:
        summary: a line a row.
        path: where to save the figure as PNG, if anywhere.
        costs: keys of `cost.COLUMNS`, of the left and the right panel.
    """
    colours = {
        curve: COLOURS[i % len(COLOURS)] for i, curve in enumerate(_curves(summary).unique())
    }
    styles = {
        row: (colours[curve], MARKERS[number % len(MARKERS)])
        for number, (row, curve) in enumerate(zip(summary["row"], _curves(summary), strict=True))
    }
    # Better is higher: what is good the less there is of it counts downwards from nothing.
    drawn = summary[summary["seeds"] > 0].assign(good=_good).sort_values("good", kind="stable")
    bottom, top = score_range(drawn)
    # A row below the panel stands near its lower edge, and its label says where it would be.
    inside = drawn["good"] >= bottom
    drawn["level"] = drawn["good"].where(inside, bottom + 0.02 * (top - bottom))
    drawn["bar"] = drawn["score_half_width"].where(inside).fillna(0.0)
    labels = [_label(line, summary["seeds"].max(), bottom) for line in drawn.to_dict("records")]
    sizes = np.array([LINE * (1 + label.count("\n")) for label in labels])

    caption = _caption(summary, drawn, bottom, top)
    margin = BOTTOM + LINE * (1 + caption.count("\n"))
    height = max(3.3, sizes.sum() + LINE)  # of the panels
    page = Figure(figsize=(WIDTH, TOP + height + margin), dpi=DPI)
    column = _text_width(page, labels) + 2 * (GUTTER + PAD)
    panel = (WIDTH - 2 * SIDE - column) / 2
    inch = np.array([WIDTH, page.get_figheight(), WIDTH, page.get_figheight()])
    left, middle, right = (
        page.add_axes(np.array([x, margin, width, height]) / inch)
        for x, width in ((SIDE, panel), (SIDE + panel, column), (WIDTH - SIDE - panel, panel))
    )
    page.text(0.5, 1 - 0.12 / inch[1], _title(summary), ha="center", va="top", fontsize=12)
    page.text(0.5, 0.1 / inch[1], caption, ha="center", va="bottom", fontsize=8, color="0.3")

    middle.set(xlim=(0, column), ylim=(bottom, top))
    middle.axis("off")
    targets = spread(drawn["level"], sizes * (top - bottom) / height, bottom, top)
    for row, label, y in zip(drawn["row"], labels, targets, strict=True):
        middle.text(column / 2, y, label, ha="center", va="center", fontsize=FONT)
        colour, marker = styles[row]
        for x in (GUTTER, column - GUTTER):
            middle.plot(x, y, marker, color=colour, markersize=5, clip_on=False)

    sign = 1 if summary["higher"].all() else -1
    for axis, cost in zip((left, right), columns(costs), strict=True):
        label = f"{heading(cost)}, log scale"
        axis.set(ylim=(bottom, top), xlabel=label, ylabel=title(summary)[0])
        axis.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{sign * y + 0.0:g}"))
        places = _draw_panel(axis, drawn, cost.key, SYMBOLS.get(cost.unit, ""), styles)
        edge = axis.get_xlim()[1 if axis is left else 0]
        bend = (0, GUTTER) if axis is left else (column, column - GUTTER)
        for row, x, y, target in zip(drawn["row"], places, drawn["level"], targets, strict=True):
            if np.isfinite(x):
                style = dict(color=styles[row][0], linewidth=0.7, alpha=0.6, zorder=1)
                axis.plot([x, edge], [y, y], **style)
                middle.plot(bend, [y, target], **style)
    right.yaxis.set_label_position("right")
    right.yaxis.tick_right()
    if path is not None:
        page.savefig(path, dpi=DPI)
    return page


def front(summary: pd.DataFrame, cost: str) -> list[str]:
    """Returns the rows that no other row beats in mean score at the same `cost` or less.

    They come in order of cost, and of rows alike in both only the first of the table.
    """
    ordered = summary[(summary["seeds"] > 0) & (summary[cost] > 0)].assign(good=_good)
    ordered = ordered.sort_values([cost, "good"], ascending=[True, False], kind="stable")
    best = ordered["good"].cummax().shift(fill_value=-np.inf)
    return ordered.loc[ordered["good"] > best, "row"].tolist()


def _good(summary: pd.DataFrame) -> pd.Series:
    """Returns scores of which more is better."""
    return summary["score"].where(summary["higher"], -summary["score"])


def _curves(rows: pd.DataFrame) -> pd.Series:
    """Returns what the names of rows share that differ in a last number alone, `H=8` and `H=16`."""
    return rows["row"].str.replace(r"=[\d.e+-]+$", "=", regex=True)


def _draw_panel(
    axis: Axes, drawn: pd.DataFrame, cost: str, symbol: str, styles: dict[str, tuple[str, str]]
) -> np.ndarray:
    """Draws points, curves, intervals and the front; returns the x of each row, NaN where unknown."""
    costs = drawn[cost] if cost in drawn else pd.Series(np.nan, drawn.index)
    exponents = np.log10(costs.where(costs > 0)).to_numpy(dtype=float, copy=True)
    known = np.isfinite(exponents)
    if not known.any():
        axis.set(xticks=[], xlabel=f"{cost}: nothing to draw")
        return exponents
    middle = (exponents[known].min() + exponents[known].max()) / 2
    half = max(np.ptp(exponents[known]) * 0.58, 0.03)
    _cost_axis(axis, middle - half, middle + half, symbol)
    # Best first: among rows of equal cost the one on the front is then the leftmost.
    order = np.flatnonzero(known)[::-1]
    order = order[np.argsort(exponents[order].round(9), kind="stable")]
    gap = min(0.025, 0.2 / len(order)) * 2 * half
    gaps = np.full(len(order), gap)
    exponents[order] = spread(exponents[order], gaps, middle - half, middle + half)
    places = 10.0**exponents

    for x, line in zip(places, drawn.to_dict("records"), strict=True):
        colour, marker = styles[line["row"]]
        axis.errorbar(
            x,
            line["level"],
            yerr=line["bar"],
            fmt=marker,
            color=colour,
            markersize=7,
            markeredgecolor="white",
            markeredgewidth=0.4,
            elinewidth=1.0,
            capsize=2.0,
            zorder=3,
        )
    for _, rows in drawn.assign(place=places).dropna(subset="place").groupby(_curves(drawn)):
        rows = rows.sort_values("place")
        colour, _ = styles[rows["row"].iloc[0]]
        axis.plot(rows["place"], rows["level"], color=colour, linewidth=1.5, zorder=2)
    on_front = drawn["row"].isin(front(drawn, cost)).to_numpy()
    steps = sorted(zip(places[on_front], drawn["level"][on_front], strict=True))
    axis.step(*zip(*steps, strict=True), where="post", color="0.82", linewidth=4, zorder=0.9)
    return places


def _cost_axis(axis: Axes, low: float, high: float, symbol: str) -> None:
    """Sets a logarithmic axis from 10^low to 10^high whose ticks read as 200 k, 500 k, 1 M."""
    axis.set_xscale("log")
    axis.set_xlim(10.0**low, 10.0**high)
    if high - low < 1:  # under a decade, 1-2-5 steps may leave a single tick
        locator = MaxNLocator(4, steps=[1, 2, 5, 10])
    else:
        locator = LogLocator(subs=(1, 2, 5) if high - low < 2.5 else (1,))
    ticks = []
    for tick in locator.tick_values(10.0**low, 10.0**high):
        crowded = ticks and np.log10(tick / ticks[-1]) < 0.2 * (high - low)
        if 10.0**low <= tick <= 10.0**high and not crowded:
            ticks.append(tick)
    axis.xaxis.set_major_locator(FixedLocator(ticks))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(EngFormatter(unit=symbol))
    axis.grid(color="0.92", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines["top"].set_visible(False)


def _label(line: dict, most_seeds: int, bottom: float) -> str:
    text = marked(line)
    if line["seeds"] < most_seeds:
        text += f" (n={line['seeds']})"
    if line["good"] < bottom:
        text += f" ↓ {line['score']:.1f}" + "%" * line["percent"]
    return textwrap.fill(text, width=28)


def _text_width(page: Figure, labels: list[str]) -> float:
    """Returns the width in inches of the widest label."""
    renderer = FigureCanvasAgg(page).get_renderer()
    widths = [0.0]
    for label in labels:
        text = page.text(0, 0, label, fontsize=FONT)
        widths.append(text.get_window_extent(renderer).width / DPI)
        text.remove()
    return max(widths)


def _title(summary: pd.DataFrame) -> str:
    most = int(summary["seeds"].max())
    name = f"Test {spelled(summary['metric'].iloc[0])}"
    if most < 2:
        return f"{name} against cost, {most} seeds: no interval".replace("1 seeds", "1 seed")
    return f"{name} against cost: mean and 95% t interval, n={most} seeds"


def _caption(summary: pd.DataFrame, drawn: pd.DataFrame, bottom: float, top: float) -> str:
    said = [
        "Grey band: Pareto front of the means. Points of nearly equal cost stand side by side, "
        "the best on the left."
    ]
    if _curves(drawn).duplicated().any():
        said.append("A line joins rows whose names differ in their last number alone.")
    if (drawn["good"] < bottom).any():
        said.append("↓ marks a row that lies below the panels, with its score.")
    low, high = drawn["level"] - drawn["bar"], drawn["level"] + drawn["bar"]
    if ((low < bottom) | (high > top)).any():
        said.append("A bar without an end goes on outside the panel.")
    if summary["simulated"].any():
        said.append("† simulated: a mask over a dense product, whose work is done all the same.")
    if "activations" in summary:
        said.append(ROUNDED)
    if failed := summary.loc[summary["seeds"] == 0, "row"].tolist():
        said.append(f"Not drawn, because every seed failed: {', '.join(failed)}.")
    return "\n".join(textwrap.fill(sentence, 150) for sentence in said)
