"""The first table: how tokens mix and how weights are stored, on handwritten digits.

    python -m experiments.ablate --config=configs/ablations/first.py --workdir=runs/first

Eight rows, five seeds each. A row is a line: its name, and what it changes of `configs/digits.py`.
"""

from configs import digits
from tinyattn.attention import spec as attention
from tinyattn.weights import presets
from tinyattn.weights import spec as weights

KERNELS = "block.*/kernel$"
WINDOW = attention("window", window=3, block=4)
DELTA = presets.both("row", "full", leaves=KERNELS, w0="seed")
SHARED = weights("share")
# After `delta`: layers share W0, V, biases and norms, and each keeps its own D.
SHARED_BUT_D = weights("share", keep="/d$")


def get_config(arg=None):
    """The base of all rows; `seeds` are the table's."""
    config = digits.get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    return config


def rows():
    yield "dense", {}
    yield "grouped-query", {"model.attention.num_kv_heads": 2}
    yield "window", {"model.attention": WINDOW}
    yield "linear", {"model.attention": attention("linear")}
    yield "shared", {"weights": (SHARED,)}
    yield "W0 + D⊙V", {"weights": (DELTA,)}
    yield "shared + D⊙V", {"weights": (DELTA, SHARED_BUT_D)}
    yield "window + shared + D⊙V", {"model.attention": WINDOW, "weights": (DELTA, SHARED_BUT_D)}
