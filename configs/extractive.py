"""Summaries by extraction: the sentence of an abstract that says best what the paper is about.

    python -m experiments.train --config=configs/extractive.py --workdir=runs/extractive
    printf 'Many have tried. We propose a parser. It is fast.\n' |
        python -m experiments.predict --workdir=runs/extractive

Three seeds, on two CPU cores that other work shared, 76 to 98 s each: ROUGE-1 41.5 ± 0.4%, ROUGE-2 20.8 ±
0.4% and ROUGE-L 34.7 ± 0.3% of the test split (n=3, 95% t interval), where the first words of the abstract
have 30.7%, 11.8% and 24.4%, and always the best sentence 47.9%, 27.4% and 41.9%.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from configs import trec
from tinyattn import tasks
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 4000, 64


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config: that of `configs/trec.py`, and what differs.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    config = trec.get_config(arg)
    config.task = tasks.spec(
        "scitldr_extractive", vocab_size=VOCABULARY, length=LENGTH, token_dropout=0.2
    )
    config.model.update(
        vocab_size=VOCABULARY,
        num_classes=3,  # ROUGE-1, 2 and L are expected of every sentence
        max_length=LENGTH,
        token_types=5,
        width=64,
        ffn_width=128,
        pool="mean",
    )
    if not parse_arg(arg, attention="dense", smoke=False).smoke:
        # Few texts: what it learns by heart later is left behind.
        config.train.update(batch_size=64, steps=750, eval_every=125, patience=3)
    return config
