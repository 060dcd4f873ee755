"""The rows of the first table on MNIST: how tokens mix, and how weights are stored.

    python -m experiments.ablate --config=configs/ablations/images.py --workdir=runs/images

The dataset is found as `configs/mnist.py` says.
"""

from configs import mnist
from configs.ablations.first import rows

__all__ = ["get_config", "rows"]


def get_config(arg=None):
    """The base of all rows."""
    config = mnist.get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    return config
