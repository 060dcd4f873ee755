"""The rows of the first table on extracts from abstracts: how tokens mix, and how weights are stored.

    python -m experiments.ablate --config=configs/ablations/summaries.py --workdir=runs/extracts

The dataset is found as `configs/extractive.py` says.
"""

from configs import extractive
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = extractive.get_config(arg)
    config.seeds = (0, 1, 2)
    return config
