"""ListOps of Long Range Arena: up to 2,000 tokens, sizes of the arena's own config, for an accelerator.

    python -m experiments.train --config=configs/listops.py --workdir=runs/listops
    python -m experiments.train --config=configs/listops.py:short --workdir=runs/listops_short

`short` has expressions of 20 to 100 tokens and a smaller model, for a CPU: 44.1 ± 1.7% of the test split
(n=3 seeds, 95% t interval), in 6.5 to 7.3 minutes each on one of two CPU cores, other work on the other
one. The arena's own sizes were not trained.
"""

import ml_collections

from tinyattn import attention, model, optim, registry, tasks, train
from tinyattn.config import parse_arg

SHORT = {
    "depth": 5,
    "arguments": 5,
    "shortest": 20,
    "longest": 100,
    "train_examples": 20_000,
    "validation_examples": 1_000,
    "test_examples": 1_000,
}
FEW = {"train_examples": 64, "validation_examples": 32, "test_examples": 32}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `attention=NAME` picks a variant; `short` is for a CPU; `smoke` runs a few steps of that.
    """
    chosen = parse_arg(arg, attention="dense", short=False, smoke=False)
    small = chosen.short or chosen.smoke
    fields = (SHORT if small else {}) | (FEW if chosen.smoke else {})
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.task = tasks.spec("listops", **fields)
    config.model = model.spec(
        inputs="tokens",
        vocab_size=16,
        width=64 if small else 512,
        num_layers=4,
        ffn_width=128 if small else 1024,
        positions="sinusoidal",
        pool="cls",
        attention=attention.spec(chosen.attention, num_heads=4 if small else 8),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=1e-3 if small else 3e-4,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 500,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 5000,
        batch_size=8 if chosen.smoke else 32,
        eval_every=10 if chosen.smoke else 500,
        steps_per_dispatch=10,
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    return config
