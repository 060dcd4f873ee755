"""Pairs of sentences of GLUE: words, two layers, a mean over the tokens of both.

    python -m experiments.train --config=configs/pairs.py --workdir=runs/mrpc
    python -m experiments.train --config=configs/pairs.py:task=stsb --workdir=runs/stsb
    printf 'A cat sat.\tA cat was sitting.\n' | python -m experiments.predict --workdir=runs/stsb

Tasks: `mnli`, `mrpc`, `qnli`, `qqp`, `rte`, `wnli`, and `stsb`, which is a score. None of them was
measured: only small files with the hub's schema have run.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from configs import trec
from tinyattn import tasks
from tinyattn.config import parse_arg

VOCABULARY, LENGTH = 8000, 64
# Outputs, where they are not two.
OUTPUTS = {"mnli": 3, "stsb": 1}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config: that of `configs/trec.py`, and what differs.

    Args:
      arg: `task=NAME`; `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    chosen = parse_arg(arg, task="mrpc", attention="dense", smoke=False)
    config = trec.get_config(f"attention={chosen.attention}{',smoke' * chosen.smoke}")
    config.task = tasks.spec(
        "pairs", task=chosen.task, vocab_size=VOCABULARY, length=LENGTH, token_dropout=0.1
    )
    outputs = OUTPUTS.get(chosen.task, 2)
    config.model.update(
        vocab_size=VOCABULARY, num_classes=outputs, max_length=LENGTH, token_types=2, pool="mean"
    )
    if not chosen.smoke:
        config.train.update(batch_size=32, steps=2000, eval_every=500)
    return config
