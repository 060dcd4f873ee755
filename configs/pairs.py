"""Pairs of sentences of GLUE: words, two layers, a mean over the tokens of both.

    python -m experiments.train --config=configs/pairs.py --workdir=runs/mrpc
    python -m experiments.train --config=configs/pairs.py:task=stsb --workdir=runs/stsb
    printf 'A cat sat.\tA cat was sitting.\n' | python -m experiments.predict --workdir=runs/stsb

Tasks: `mnli`, `mrpc`, `qnli`, `qqp`, `rte`, `wnli`, and `stsb`, which is a score. One run each, seed 0,
in 3.5 to 4 minutes on one of two CPU cores that other work shared, on GLUE's validation splits: MRPC F1
76.6% and accuracy 67.2% (logistic regression on the same words, in the same run, 78.0% and 68.1%;
always `equivalent` 81.2% and 68.4%), RTE accuracy 50.2% (50.2%), STS-B Pearson 0.19 and Spearman 0.19
(ridge regression on the words that both texts have, and on the others, 0.66 and 0.68). A few thousand
pairs are learned by heart and teach no more. The other four ran on small files with the hub's schema.

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
