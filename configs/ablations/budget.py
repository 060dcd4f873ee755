"""How much accuracy a kilobyte buys: families of weights from 2 kB of stored bytes to 65 kB, on digits.

    python -m experiments.ablate --config=configs/ablations/budget.py --workdir=runs/budget

Each row meets its budget within 1%; a line joins the sizes of a family.
"""

from configs.ablations.first import KERNELS
from configs.ablations.first import get_config as first
from tinyattn.sweep import cross, fit
from tinyattn.weights import presets
from tinyattn.weights import spec as weights

__all__ = ["get_config", "rows"]

SIZES = (2040, 4096, 8192, 16_384, 65_536)
SIZE = {
    "model.width": fit(4, 256, multiple=4),
    "model.ffn_width": fit(1, 64, of="model.width"),
}
SEED = {"leaves": KERNELS, "w0": "seed"}


def get_config(arg=None):
    """The base of all rows."""
    config = first(arg)
    config.figure = ("stored_bytes", "executed_flops")
    config.budget = dict(cost="stored_bytes", target=SIZES[-1], tolerance=0.01)
    return config


def rows():
    yield from cross(_families(), _sizes())


def _sizes():
    for size in SIZES:
        yield f"B={size}", {"budget.target": size}


def _families():
    yield "dense,", SIZE
    yield "shared,", SIZE | {"weights": (weights("share"),)}
    one = {"d": presets.factor("row", value=1.0), "v": presets.factor("lowrank", rank=2)}
    yield "seed + row D, R=2,", SIZE | {"weights": (presets.delta(one, **SEED),)}
    yield "supermask of a seed,", SIZE | {"weights": (presets.supermask(leaves=KERNELS),)}
