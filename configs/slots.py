"""Slots of SNIPS, a BIO tag a word: parts of words, two layers, texts packed into rows.

    python -m experiments.train --config=configs/slots.py --workdir=runs/slots

Three seeds, on two CPU cores that other work shared, 91 to 113 s each: span F1 84.8 ± 3.0% on the test
split (n=3, 95% t interval), where each word's most frequent tag has 49.5%.

The dataset is not on the hub; give a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from configs import trec
from tinyattn import tasks
from tinyattn.config import parse_arg

VOCABULARY, LENGTH, TAGS = 4000, 64, 72


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config: that of `configs/trec.py`, and what differs.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    config = trec.get_config(arg)
    config.task = tasks.spec(
        "slots", vocab_size=VOCABULARY, length=LENGTH, pack=LENGTH, token_dropout=0.1
    )
    config.model.update(num_classes=TAGS)
    config.optim.learning_rate = 2e-3
    if not parse_arg(arg, attention="dense", smoke=False).smoke:
        config.train.update(batch_size=32)
    return config
