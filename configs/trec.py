"""Question types of TREC, six classes: words, two layers, several texts in a row.

    python -m experiments.train --config=configs/trec.py --workdir=runs/trec

Three seeds, on two CPU cores that other work shared, 45 to 57 s each: 87.5 ± 4.5% of the test split (n=3,
95% t interval); logistic regression on its words has 83.6%.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from tinyattn import attention, model, optim, registry, tasks, train
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 4000, 64


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    chosen = parse_arg(arg, attention="dense", smoke=False)
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.task = tasks.spec(
        "trec", vocab_size=VOCABULARY, length=LENGTH, pack=LENGTH, token_dropout=0.1
    )
    # Where its dataset is, which changes nothing.
    config.data = registry.defaults(tasks.Source)
    config.model = model.spec(
        inputs="tokens",
        vocab_size=VOCABULARY,
        num_classes=6,
        max_length=LENGTH,
        width=128,
        num_layers=2,
        ffn_width=256,
        dropout=0.3,
        # An output for each token; that of a text stands at its first.
        pool="none",
        attention=attention.spec(chosen.attention, num_heads=4),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 100,
        weight_decay=0.1,
        clip_norm=1.0,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 1000,
        batch_size=4 if chosen.smoke else 16,
        eval_every=10 if chosen.smoke else 250,
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    return config
