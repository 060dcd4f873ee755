"""Which matrices may stay random: kernels frozen as drawn from a seed, part by part, on digits.

    python -m experiments.ablate --config=configs/ablations/where.py --workdir=runs/where

A frozen kernel is stored as its seed; biases and norms are trained everywhere. Beside each, the same part
with a trained row D.
"""

from configs.ablations.first import get_config as first
from tinyattn.weights import presets

__all__ = ["get_config", "rows"]

PARTS = {
    "Q": "query",
    "K": "key",
    "Q and K": "(query|key)",
    "V": "value",
    "O": "out",
    "Q, K, V and O": "(query|key|value|out)",
    "FFN": "(up|down)",
    "all": "(query|key|value|out|up|down)",
}


def get_config(arg=None):
    """The base of all rows."""
    config = first(arg)
    config.figure = ("stored_bytes", "training_flops")
    return config


def rows():
    yield "all trained", {}
    for name, part in PARTS.items():
        kernels = f"block.*/{part}/kernel$"
        yield f"{name} random", {"weights": (presets.frozen(leaves=kernels),)}
        yield f"{name} random, row D", {"weights": (presets.ia3(leaves=kernels, w0="seed"),)}
