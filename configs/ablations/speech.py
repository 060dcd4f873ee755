"""The rows of the first table on spoken digits: how tokens mix, and how weights are stored.

    python -m experiments.ablate --config=configs/ablations/speech.py --workdir=runs/speech

The dataset is found as `configs/fsdd.py` says.
"""

from configs import fsdd
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = fsdd.get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    return config
