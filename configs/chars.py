"""A character language model of Shakespeare's plays, in nanoGPT's setting for a CPU.

    python -m experiments.train --config=configs/chars.py --workdir=runs/chars

One run, seed 0, on two CPU cores that other work shared: a loss of 1.894 on the validation split and 1.926
on the test split, 1.910 over nanoGPT's last tenth, in 352 s; nanoGPT prints 1.88.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from tinyattn import attention, model, optim, registry, tasks, train
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 70, 64  # 65 characters and five special tokens


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    chosen = parse_arg(arg, attention="dense", smoke=False)
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.task = tasks.spec("chars", vocab_size=VOCABULARY, length=LENGTH)
    # Where its dataset is, which changes nothing.
    config.data = registry.defaults(tasks.Source)
    config.model = model.spec(
        inputs="tokens",
        vocab_size=VOCABULARY,
        num_classes=VOCABULARY,
        max_length=LENGTH,
        width=128,
        num_layers=4,
        ffn_width=512,
        dropout=0.0,
        causal=True,
        pool="none",
        tied_head=True,
        init="truncated_normal",
        depth_scaling="residual",
        attention=attention.spec(chosen.attention, num_heads=4),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 100,
        weight_decay=0.1,
        clip_norm=1.0,
        end_factor=0.1,
        b2=0.99,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 2000,
        batch_size=8 if chosen.smoke else 12,
        eval_every=10 if chosen.smoke else 500,
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    return config
