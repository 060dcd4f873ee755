"""Which shapes of D and V, at equal stored bytes: digits, every row within 1% of 20 kB.

    python -m experiments.ablate --config=configs/ablations/weights.py --workdir=runs/weights

The width of the model is what gives way: a row that stores more a weight has fewer weights.
"""

from configs.ablations.first import KERNELS
from configs.ablations.first import get_config as first
from tinyattn.sweep import fit
from tinyattn.weights import presets

__all__ = ["get_config", "rows"]

BYTES = 20_000
# Whole heads first, then columns of the feed-forward layer.
SIZE = {
    "model.width": fit(8, 160, multiple=4),
    "model.ffn_width": fit(2, 16, of="model.width"),
}
SEED = {"leaves": KERNELS, "w0": "seed"}


def get_config(arg=None):
    """The base of all rows."""
    config = first(arg)
    config.figure = ("stored_bytes", "training_flops")
    config.budget = dict(cost="stored_bytes", target=BYTES, tolerance=0.01)
    return config


def rows():
    yield "dense", SIZE
    for d in ("scalar", "row", "col", "rank1", "full"):
        yield f"seed + {d} D, full V", SIZE | {"weights": (presets.both(d, **SEED),)}
    for rank in (2, 8):
        low = presets.factor("lowrank", rank=rank)
        one = {"d": presets.CONST, "v": low}
        yield f"seed + low rank, R={rank}", SIZE | {"weights": (presets.delta(one, **SEED),)}
        two = {"d": presets.factor("row", value=1.0), "v": low}
        yield (
            f"seed + row D, low-rank V, R={rank}",
            SIZE | {"weights": (presets.delta(two, **SEED),)},
        )
    loha = {"d": presets.factor("lowrank", rank=4, std=1.0), "v": presets.factor("lowrank", rank=4)}
    yield "seed + low-rank D and V, R=4", SIZE | {"weights": (presets.delta(loha, **SEED),)}
    yield "seed, row D trained", SIZE | {"weights": (presets.train_d(**SEED),)}
    yield "pool of 1,024", SIZE | {"weights": (presets.hashed(1024, leaves=KERNELS),)}
    yield "supermask of a seed", SIZE | {"weights": (presets.supermask(leaves=KERNELS),)}
