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
# # The first table, read from its records
#
# This notebook redraws the table and the figure of an ablation from its results directory and says
# what there is to see in them. It trains nothing; every claim below is computed from the records.
#
# The directory is `experiments/results/first`, or the one that the environment variable
# `TINYATTN_RESULTS` names; a relative path starts at the root of the repository.

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

import pandas as pd
from IPython.display import Image, Markdown, display

from experiments import report
from tinyattn import records, stats

ROOT = Path(report.__file__).parents[1]
RESULTS = ROOT / os.environ.get("TINYATTN_RESULTS", "experiments/results/first")
runs = records.load(RESULTS)
summary = report.summarise(runs)
baseline = summary["row"].iloc[0]

print(f"{len(runs)} runs of {len(summary)} rows, from {RESULTS}")
made_with = [name for name in runs if name.startswith("versions.")] + ["commit", "dirty", "device"]
display(runs[made_with].drop_duplicates().reset_index(drop=True).T)

# %% [markdown]
# The columns above are the distinct environments in which the runs were made: versions, the commit
# of the code (and whether it had uncommitted changes), and the device. More than one column means
# that the rows were not all made alike, and that latencies should not be compared across them.

# %% [markdown]
# ## How accurate is each row, and what does it cost?
#
# Each line is a row of the ablation: its test accuracy over the seeds, its difference to the first
# row on the same seeds, and its costs. The legend under the table says what each column means.

# %%
display(Markdown(report.markdown(summary)))

# %% [markdown]
# ## Which rows give the most accuracy for their cost?
#
# Sharing layers and reparameterising weights change what is stored and leave the FLOPs of inference
# as they are; a window or linear attention changes the FLOPs and leaves what is stored. So the same
# rows are drawn against both.

# %%
picture = io.BytesIO()
report.figure(summary).savefig(picture, format="png")
display(Image(picture.getvalue(), width=1000))

# %%
finished = summary[summary["seeds"] > 0]
for cost in ("executed_flops", "stored_bytes"):
    front = report.front(summary, cost)
    beaten = [row for row in finished["row"] if row not in front]
    print(f"{cost}: no row is both cheaper and better on average than {', '.join(front)}.")
    print(f"    Matched or beaten by one of them: {', '.join(beaten) or 'no row'}.")

# %% [markdown]
# The front joins means. Where the intervals of two rows overlap widely, which of them lies on it is
# partly chance; the next section asks which differences are more than that.

# %% [markdown]
# ## Which differences to the baseline are more than chance?
#
# Differences are paired by seed, which removes the luck that the rows share, such as the order of
# the batches. The t interval assumes roughly normal differences; the sign-flip test does not.
# With few seeds the test cannot reach a small p whatever the differences are.

# %%
for line in summary.iloc[1:].to_dict("records"):
    if not line["pairs"]:
        print(f"{line['row']}: no seed to compare. {line['failure']}")
        continue
    excludes_zero = abs(line["difference"]) > line["difference_half_width"]
    print(
        f"{line['row']}: {line['difference']:+.2f} ± {line['difference_half_width']:.2f} "
        f"points against {baseline} (n={line['pairs']} seeds). The interval "
        f"{'excludes' if excludes_zero else 'does not exclude'} zero; Holm-adjusted sign-flip "
        f"p = {line['p_holm']:.2g}, where n={line['pairs']} can reach "
        f"{stats.smallest_p(line['pairs']):.2g} before the adjustment."
    )

# %% [markdown]
# ## Which costs does each row move?
#
# Every cost as a multiple of the baseline's, so that 1 means that the row leaves that cost alone.

# %%
costs = [column.key for column in report.COLUMNS if column.key in summary]
multiples = summary.set_index("row")[costs] / summary[costs].iloc[0]
display(multiples.round(2))

# %%
for row, line in multiples.iloc[1:].iterrows():
    less = [cost for cost in costs if line[cost] < 0.995]
    more = [cost for cost in costs if line[cost] > 1.005]
    print(f"{row}: less {', '.join(less) or 'of nothing'}; more {', '.join(more) or 'of nothing'}.")

# %% [markdown]
# ## Do two rows fail on the same images?
#
# Two rows of equal accuracy may still be wrong about different images. For each seed on its own,
# the table counts the test images that only one of the two rows gets right, with McNemar's exact p.
# Seeds are not pooled: they see the same images, so their counts are not independent. The rows are
# the baseline and the one that lies farthest from it in accuracy.

# %%
others = summary.iloc[1:].dropna(subset=["difference"])
lines = []
if len(others):
    other = others.loc[others["difference"].abs().idxmax(), "row"]
    digests = runs[runs["status"] == "ok"].pivot(index="seed", columns="row", values="digest")
    for seed, pair in digests[[baseline, other]].dropna().iterrows():
        arrays = [records.arrays(RESULTS, pair[row]) for row in (baseline, other)]
        if None not in arrays:
            counts = stats.disagreement(*(array["correct"] for array in arrays))
            lines.append({"seed": seed, "images": len(arrays[0]["correct"]), **counts._asdict()})

if lines:
    disagreements = pd.DataFrame(lines).rename(
        columns={"only_a": f"only {baseline}", "only_b": f"only {other}", "p": "McNemar p"}
    )
    display(disagreements.set_index("seed"))
    separated = int((disagreements["McNemar p"] < 0.05).sum())
    seeds = f"{separated} of {len(disagreements)} seeds"
    print(f"At p < 0.05, {seeds} alone separate {baseline} from {other}.")
else:
    print(f"No arrays per test image for two rows under {RESULTS}/runs, so nothing to compare.")
