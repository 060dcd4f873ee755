"""The rows of the first table on question types: how tokens mix, and how weights are stored.

    python -m experiments.ablate --config=configs/ablations/text.py --workdir=runs/text

The dataset is found as `configs/trec.py` says. A row a text, for linear attention tells no texts of one row
apart.
"""

from configs import trec
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = trec.get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    config.task.pack = 0
    config.model.pool = "mean"
    return config
