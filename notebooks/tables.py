# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # All tables, redrawn from their records
#
# Every table under `experiments/results`, or under the directory that the environment variable
# `TINYATTN_TABLES` names (a relative path starts at the root of the repository). It trains nothing;
# all that is said is computed from the records. `first_table` reads one table more closely.

# %%
import io
import os
import sys
from pathlib import Path

# The repository is the nearest folder above this file, or above the working directory in Jupyter.
sys.path.insert(
    0,
    next(
        str(folder)
        for folder in Path(globals().get("__file__", "notebook")).resolve().parents
        if (folder / "experiments" / "report.py").exists()
    ),
)

from IPython.display import Image, Markdown, display

from experiments import report
from tinyattn import records

ROOT = Path(report.__file__).parents[1]
TABLES = ROOT / os.environ.get("TINYATTN_TABLES", "experiments/results")
folders = sorted(path.parent for path in TABLES.glob("*/results.jsonl"))
runs = {folder.name: records.load(folder) for folder in folders}
summaries = {name: report.summarise(own) for name, own in runs.items()}

for name, own in runs.items():
    devices = " and ".join(sorted(own["device"].dropna().unique()))
    seeds = own["seed"].nunique()
    print(f"{name}: {len(own)} runs, {len(summaries[name])} rows, {seeds} seeds, on {devices}")

# %% [markdown]
# ## Scores and costs
#
# A line is a row of the ablation: its test score over the seeds, its difference to the first row on
# the same seeds, and its costs. The same rows are drawn against two of the costs below each table.

# %%
for name, summary in summaries.items():
    picture = io.BytesIO()
    report.figure(summary, costs=report.figure_costs(runs[name])).savefig(picture, format="png")
    display(Markdown(f"### {name}\n\n{report.markdown(summary)}"))
    display(Image(picture.getvalue(), width=1000))

# %% [markdown]
# ## Which differences are more than chance?
#
# Of the paired t interval of each row's difference to the first row, at 95% and for each row alone;
# with many rows some intervals exclude zero by luck, for which the tables' Holm-adjusted p corrects.

# %%
for name, summary in summaries.items():
    rows = summary.iloc[1:].dropna(subset=["difference_half_width"])
    gain = rows["difference"] if summary["higher"].iloc[0] else -rows["difference"]
    better, worse = (sign * gain > rows["difference_half_width"] for sign in (1, -1))
    print(f"{name}: against {summary['row'].iloc[0]}, of {len(rows)} rows")
    print(f"    better: {', '.join(rows['row'][better]) or 'none'}")
    print(f"    worse: {', '.join(rows['row'][worse]) or 'none'}")
