"""The rows of the first table on characters of Shakespeare's plays: mixing, and storage of weights.

    python -m experiments.ablate --config=configs/ablations/language.py --workdir=runs/language

The dataset is found as `configs/chars.py` says.
"""

from configs import chars
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = chars.get_config(arg)
    config.seeds = (0, 1, 2)
    return config
