"""ALBERT's four modes of sharing, and what a layer may keep for itself: digits, four layers.

    python -m experiments.ablate --config=configs/ablations/sharing.py --workdir=runs/sharing

Sharing moves no FLOP, so the figure is drawn against stored bytes and trainable parameters.
"""

from configs.ablations.first import get_config as first
from tinyattn.weights import presets
from tinyattn.weights import spec as weights

__all__ = ["get_config", "rows"]

MODES = {"all": "", "attention": "/attention/", "FFN": "/ffn/"}
RANK = 4


def get_config(arg=None):
    """The base of all rows."""
    config = first(arg)
    config.model.num_layers = 4
    config.figure = ("stored_bytes", "trainable_params")
    return config


def rows():
    """Each mode as it is, with a row D, and with a low rank for each layer."""
    yield "nothing shared", {}
    for mode, part in MODES.items():
        here, leaves = f"block.*{part}.*kernel$", part or "."
        yield f"{mode} shared", {"weights": (weights("share", leaves=leaves),)}
        # The delta shares its V by itself; what is left of the layer is shared after it.
        rest = weights("share", leaves=leaves, keep="/terms/")
        yield f"{mode} shared, row D", {"weights": (presets.relaxed(d="row", leaves=here), rest)}
        yield f"{mode} shared, low rank", {"weights": (presets.relaxed(RANK, leaves=here), rest)}
