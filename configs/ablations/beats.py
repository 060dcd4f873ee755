"""The Beats encoder beside a plain one at as many FLOPs, and at as many stored bytes: intents.

    python -m experiments.ablate --config=configs/ablations/beats.py --workdir=runs/beats_table

The dataset is found as `configs/intents.py` says. What the plain encoder gets more of is the width of its
feed-forward layers, or that of its whole model, for the embeddings are most of the bytes.
"""

from configs import beats, intents
from tinyattn.sweep import fit

__all__ = ["get_config", "rows"]

# Of the Beats encoder; its own row is refused where they are not.
FLOPS, BYTES = 22_058_752, 3_876_444


def get_config(arg=None):
    """The base of all rows: the plain encoder."""
    config = intents.get_config(arg)
    config.seeds = (0, 1, 2, 3, 4)
    config.figure = ("executed_flops", "stored_bytes")
    config.budget = dict(cost="executed_flops", target=FLOPS, tolerance=0.01)
    return config


def rows():
    own = beats.get_config().model
    changed = {"embeddings", "qkv", "norm_place"}
    yield "Beats", {f"model.{name}": own[name] for name in sorted(changed)}
    yield "plain, as many FLOPs", {"model.ffn_width": fit(64, 2048)}
    yield (
        "plain, as many bytes",
        {
            "budget.cost": "stored_bytes",
            "budget.target": BYTES,
            "model.width": fit(64, 512, multiple=4),
            "model.ffn_width": fit(1, 4, of="model.width"),
        },
    )
