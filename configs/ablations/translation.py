"""The rows of the first table on captions from German to English: mixing in the encoder, and storage.

    python -m experiments.ablate --config=configs/ablations/translation.py --workdir=runs/translations
    python -m experiments.ablate --config=configs/ablations/translation.py:task=aeslc --workdir=runs/aeslc

The datasets are found as `configs/answers.py` says. The decoder attends densely in every row; schemes store
the weights of both. A row a text, for linear attention tells no texts of one row apart.
"""

from configs import answers
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = answers.get_config(f"{arg or ''},alone")
    config.seeds = (0, 1, 2)
    return config
