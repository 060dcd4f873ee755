"""Spoken digits as log-mel frames, 10 ms each: a convolutional tokeniser and a small encoder.

    python -m experiments.train --config=configs/fsdd.py --workdir=runs/fsdd

Three seeds, on two CPU cores that other work shared: 99.6 ± 0.5% of the test split (n=3, 95% t interval),
in 27 to 44 s each.

The hub has no such dataset: give a directory that has `fsdd/train.parquet` and `fsdd/test.parquet` by
TINYATTN_DATA=DIRECTORY, or by `--config.data.dir=DIRECTORY`.
"""

import ml_collections

from tinyattn import attention, model, optim, registry, tasks, train
from tinyattn.config import parse_arg


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    chosen = parse_arg(arg, attention="dense", smoke=False)
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.task = tasks.spec("fsdd", time_mask=12, mel_mask=8)
    # Where its dataset is, which changes nothing.
    config.data = registry.defaults(tasks.Source)
    config.model = model.spec(
        inputs="frames",
        tokeniser=2,
        width=64,
        num_layers=2,
        ffn_width=128,
        dropout=0.1,
        positions="sinusoidal",
        attention=attention.spec(chosen.attention, num_heads=4),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=2e-3,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 100,
        weight_decay=0.05,
        clip_norm=1.0,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 1500,
        batch_size=8 if chosen.smoke else 32,
        eval_every=10 if chosen.smoke else 250,
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    return config
