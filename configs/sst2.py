"""Sentiment of SST-2: words, two layers, several texts in a row.

    python -m experiments.train --config=configs/sst2.py --workdir=runs/sst2

Three seeds, on two CPU cores that other work shared, 38 to 53 s each: 80.6 ± 0.7% of the test split (n=3,
95% t interval); logistic regression on the same words has 80.3%.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from configs import trec
from tinyattn import tasks
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 8000, 64


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config: that of `configs/trec.py`, and what differs.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    config = trec.get_config(arg)
    config.task = tasks.spec(
        "sst2", vocab_size=VOCABULARY, length=LENGTH, pack=LENGTH, token_dropout=0.1
    )
    config.model.update(vocab_size=VOCABULARY, num_classes=2, width=64, ffn_width=128)
    if not parse_arg(arg, attention="dense", smoke=False).smoke:
        config.train.update(batch_size=32, eval_every=500)
    return config
