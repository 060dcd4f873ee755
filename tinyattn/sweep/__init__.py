"""A table of runs: rows of changes to one config, each run once, each remembered.

An ablation file has `get_config(arg)` for the base, whose `seeds` are the table's, and `rows()`, which
yields `name, {dotted.key: value}`. A base's `figure` names the two costs that the table is drawn against,
its `budget` what every row may cost, its `data` where datasets are found. A run is known by the hash of its
config, without these four, so running a table again is free, and a new row or seed costs only itself.
"""

from tinyattn.sweep._budget import COSTS, Fit, Met, fit, price, solve
from tinyattn.sweep._rows import Changes, Row, Rows, Run, cross, expand, grid, zipped
from tinyattn.sweep._run import Watcher, run_table
from tinyattn.sweep._written import answers

__all__ = [
    "COSTS",
    "Changes",
    "Fit",
    "Met",
    "Row",
    "Rows",
    "Run",
    "Watcher",
    "answers",
    "cross",
    "expand",
    "fit",
    "grid",
    "price",
    "run_table",
    "solve",
    "zipped",
]
