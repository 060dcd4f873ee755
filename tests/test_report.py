"""The report: what it computes from the runs, and what it says about it."""

import doctest
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_results import captions, frame, make

from experiments import report, table
from tinyattn import records, stats
from tinyattn.cost import COLUMNS, CONVENTION

ROOT = Path(__file__).parents[1]


DENSE = [0.96, 0.97, 0.95, 0.97, 0.96]
WINDOW = [0.95, 0.955, 0.945, 0.96, 0.95]


def line(summary: pd.DataFrame, row: str) -> pd.Series:
    return summary.set_index("row").loc[row]


def test_docstring_examples():
    assert doctest.testmod(table).failed == 0


def test_rows_are_summarised_in_table_order_in_percent():
    summary = report.summarise(frame(window=WINDOW, dense=DENSE))
    assert summary["row"].tolist() == ["window", "dense"]
    dense = line(summary, "dense")
    mean, half_width = stats.t_interval(np.multiply(DENSE, 100))
    assert dense[["score", "score_half_width"]].tolist() == [mean, half_width]
    gain = stats.t_interval(100 * (np.array(DENSE) - WINDOW))
    found = dense[["difference", "difference_half_width"]].tolist()
    assert found == pytest.approx(gain)
    assert (dense["p"], dense["pairs"], dense["seeds"]) == (0.0625, 5, 5)
    assert math.isnan(line(summary, "window")["p"]) and line(summary, "window")["pairs"] == 0


def test_p_is_adjusted_over_the_rows_of_the_table():
    other = [0.97, 0.96, 0.95, 0.96, 0.97]
    summary = report.summarise(frame(dense=DENSE, window=WINDOW, linear=other))
    raw = summary["p"].iloc[1:]
    np.testing.assert_allclose(summary["p_holm"].iloc[1:], stats.holm(raw))
    assert summary["p_holm"].iloc[1] == 0.125 and math.isnan(summary["p_holm"].iloc[0])


def test_five_seeds_are_called_too_few_and_nine_are_not():
    few = frame(dense=DENSE, **{f"row {n}": WINDOW for n in range(7)})
    text = report.markdown(report.summarise(few))
    assert "0.44 n.s." in text
    assert "smallest possible p is 0.0625, adjusted 0.438. At least 9 seeds" in text
    many = frame(dense=[0.9] * 9, **{f"row {n}": [0.8 + n / 100] * 9 for n in range(7)})
    summary = report.summarise(many)
    assert (summary["p_holm"].iloc[1:] < 0.05).all()
    assert "At least" not in report.markdown(summary)
    assert "n.s. |" not in report.markdown(summary)


def test_differences_use_the_shared_seeds_and_say_so():
    runs = frame(dense=[0.9, None, 0.92, 0.94], window=[0.8, 0.1, None, 0.85])
    summary = report.summarise(runs)
    window = line(summary, "window")
    assert (window["pairs"], window["unpaired_seeds"]) == (2, "1, 2")
    assert window["difference"] == pytest.approx(-9.5)
    text = report.markdown(summary)
    assert "window: Δ and p over the seeds shared with dense, n=2; missing" in text
    assert "window: 1 of 4 failed: non-finite loss at step 40." in text
    assert "config: ..." not in text  # the first line of the error only


def test_a_failed_run_is_not_averaged_even_with_an_accuracy():
    runs = frame(dense=DENSE, window=WINDOW)
    runs.loc[runs["row"].eq("window") & runs["seed"].eq(4), "status"] = "failed"
    summary = report.summarise(runs)
    assert line(summary, "window")["score"] == pytest.approx(100 * np.mean(WINDOW[:4]))
    assert line(summary, "window")["failure"].startswith("1 of 5 failed")


def test_a_row_that_failed_wholly_is_still_a_row():
    summary = report.summarise(frame(dense=DENSE, pruned=[None] * 5))
    assert line(summary, "pruned")["failure"] == "5 of 5 failed: non-finite loss at step 40"
    assert math.isnan(line(summary, "pruned")["score"])
    row = next(text for text in report.markdown(summary).splitlines() if "| pruned" in text)
    assert "failed" in row and "0 of 5" in row and "187 kB" in row  # its costs are known
    assert "Not drawn, because every seed failed: pruned." in captions(report.figure(summary))


def test_a_table_in_which_nothing_worked_can_be_printed():
    summary = report.summarise(frame(dense=[None], window=[None]))
    text = report.terminal(summary)
    assert "no run has finished" in text and "dense shares no finished seed" in text
    report.figure(summary)


def test_a_single_seed_has_no_interval():
    summary = report.summarise(frame(dense=[0.96], window=[0.95]))
    assert "95.00 " in report.markdown(summary) and "95.00 ±" not in report.markdown(summary)
    assert "1 seed: no interval" in captions(report.figure(summary))


def test_a_seed_listed_twice_is_refused():
    runs = pd.concat([frame(dense=DENSE), frame(dense=[0.9])])
    with pytest.raises(ValueError, match=r"listed twice: \[\['dense', 0\]\]"):
        report.summarise(runs)


def test_what_is_better_the_less_there_is_of_it():
    runs = frame(dense=[0.0] * 5, window=[0.0] * 5)
    runs["metrics.test_perplexity"] = [*np.linspace(20, 21, 5), *np.linspace(18, 19.5, 5)]
    for field, value in (("name", "perplexity"), ("higher", False), ("percent", False)):
        runs[f"metric.{field}"] = value
    runs["costs.executed_flops"] = [2e6] * 5 + [1e6] * 5
    summary = report.summarise(runs)
    assert summary["score"].tolist() == [20.5, 18.75] and summary["difference"][1] == -1.75
    text = report.markdown(summary)
    assert "| test perplexity ↓ |" in " ".join(text.split())
    assert "Less is better." in text and "points" not in text
    assert "perplexity ↓" in report.terminal(summary)
    assert report.front(summary, "executed_flops") == ["window"]
    axis = report.figure(summary).axes[0]
    assert axis.get_ylabel() == "test perplexity ↓"
    low, high = axis.get_ylim()
    assert -22 < low < -20.5 and -18.75 < high < -17  # less is higher up
    assert axis.yaxis.get_major_formatter()(-19.5) == "19.5"
    runs.loc[5:, "metric.name"] = "loss"
    with pytest.raises(
        ValueError, match="rows are compared by perplexity, loss: give each its own"
    ):
        report.summarise(runs)


def test_simulated_rows_are_marked_and_explained():
    runs = frame(dense=DENSE, masked=WINDOW)
    assert "†" not in report.markdown(report.summarise(runs))
    runs.loc[runs["row"] == "masked", "simulated"] = True
    summary = report.summarise(runs)
    text = report.markdown(summary)
    assert "| masked †" in text and "- † simulated: " in text and "dense †" not in text
    assert "† simulated: " in captions(report.figure(summary))


def test_costs_are_single_numbers_unless_seeds_differ():
    runs = frame(dense=DENSE, window=WINDOW)
    runs.loc[runs["row"] == "window", "costs.latency_ratio"] = [0.8, 0.9, 0.85, 0.85, 0.85]
    summary = report.summarise(runs)
    extra = [name for name in summary if name.endswith(("_min", "_max"))]
    assert extra == ["latency_ratio_min", "latency_ratio_max"]
    assert line(summary, "window")["latency_ratio"] == pytest.approx(0.85)
    assert "0.80×–0.90×" in report.markdown(summary)
    assert "1.00×–" not in report.markdown(summary)


def test_a_cost_that_means_nothing_for_any_row_is_left_out():
    runs = frame(dense=DENSE, window=WINDOW)
    runs["costs.decode_state_bytes"] = None
    summary = report.summarise(runs)
    assert "decode_state_bytes" not in summary and "state" not in report.terminal(summary)
    runs.loc[runs["row"] == "dense", "costs.decode_state_bytes"] = 16_000
    text = report.markdown(report.summarise(runs))
    cells = {line.split("|")[1].strip(): line for line in text.splitlines() if line[:1] == "|"}
    assert "16.0 kB" in cells["dense"] and "16.0 kB" not in cells["window"]


def test_the_figure_is_drawn_against_what_the_table_names(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "figure", lambda summary, path, costs: drawn.append(list(costs)))
    written = make(tmp_path, {"dense": 0.967}, arrays=False)
    report.publish(tmp_path)
    for figure in ([], ["latency_seconds", "decode_state_bytes"]):
        records.gather(tmp_path, [line | {"figure": figure} for line in written])
        report.publish(tmp_path)
    usual = ["executed_flops", "stored_bytes"]
    assert drawn == [usual, usual, ["latency_seconds", "decode_state_bytes"]]


def test_markdown_has_every_cost_and_the_convention():
    text = report.markdown(report.summarise(frame(dense=DENSE, window=WINDOW)))
    assert CONVENTION in text
    for column in COLUMNS:
        assert column.description in text
    heads, rule, *rest = text.splitlines()
    assert heads.count("|") == rule.count("|") == rest[0].count("|") == 6 + len(COLUMNS)


def test_the_terminal_table_fits():
    rows = {f"window + shared + D⊙V, rank {n}": WINDOW for n in range(8)}
    text = report.terminal(report.summarise(frame(dense=DENSE, **rows)))
    assert max(map(len, text.splitlines())) <= 120
    assert "1.31 M" in text and "187 kB" in text
    # A decoder's state takes the place of useful FLOPs; two lines of headings stand above the rule.
    first, second, rule = text.splitlines()[:3]
    assert "decode" in first and "state" in second and "useful" not in first and set(rule) == {"─"}
    runs = frame(dense=DENSE).drop(columns="costs.decode_state_bytes")
    assert "useful" in report.terminal(report.summarise(runs)).splitlines()[0]


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (1_310_720, "FLOPs/example", "1.31 M"),
        (999_900, "FLOPs/example", "1.00 M"),
        (999.6, "operations", "1.00 k"),
        (25, "parameters", "25"),
        (0, "parameters", "0"),
        (12.5, "parameters", "12.5"),
        (100, "bytes", "100 B"),
        (186_664, "bytes", "187 kB"),
        (0.000_012_3, "seconds", "12.3 µs"),
        (0.8512, "1", "0.85×"),
        (math.nan, "bytes", "—"),
        (3e20, "FLOPs/example", "3e+20"),
    ],
)
def test_numbers_for_people(value, unit, text):
    assert table.human(value, unit) == text


def test_publishing_writes_what_it_summarises(tmp_path):
    make(tmp_path, {"dense": 0.967, "window": 0.955, "shared | D⊙V": 0.96}, arrays=False)
    summary = report.publish(tmp_path)
    written = pd.read_csv(tmp_path / "table.csv")
    assert written.columns.tolist() == summary.columns.tolist()
    assert written["stored_bytes"].tolist() == [186_664, 93_332, 62_221]
    np.testing.assert_allclose(written["score"], summary["score"])
    assert (tmp_path / "table.md").read_text() == report.markdown(summary)
    assert "shared \\| D⊙V" in report.markdown(summary)
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_prints_the_table_without_pyplot(tmp_path):
    """Pyplot would choose a backend, which is the reader's business in a notebook."""
    make(tmp_path, {"dense": 0.967, "window": 0.955}, arrays=False)
    code = (
        "import runpy, sys\n"
        "try: runpy.run_module('experiments.report', run_name='__main__')\n"
        "finally: print('pyplot:', 'matplotlib.pyplot' in sys.modules, file=sys.stderr)"
    )
    command = [sys.executable, "-c", code, f"--workdir={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == report.terminal(report.summarise(records.load(tmp_path)))
    assert "pyplot: False" in done.stderr
