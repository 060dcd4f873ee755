"""What pretraining without labels is worth where labels are few: ten an intent, the rest of them unread.

    python -m experiments.train  --config=configs/pretrain.py:task=intents --workdir=runs/pretrain
    python -m experiments.ablate --config=configs/ablations/transfer.py --workdir=runs/transfer

Pretraining reads the 15,000 training requests without their labels, once for all seeds; the rows learn from
1,510 labelled ones, a tenth, and have the pretrained run's tokeniser both. The dataset is found as
`configs/intents.py` says.

Measured on an H200 that other work shared: from scratch 61.1 ± 0.8% of the test split, pretrained
61.7 ± 0.7%, +0.59 ± 0.93 points paired by seed (n=8, 95% t intervals; sign-flip p=0.20), which is not shown
to be a gain: `transfer_images.py` has one. Logistic regression on the same words has 64.2%. With 453
labels, a mean over the tokens of one text a row, 300 steps and a learning rate of 1e-3 pretraining was
worse, 40.0% and 37.6% against 46.7% and 46.9% (two seeds).
"""

import ml_collections

from configs import intents

PRETRAINED = "runs/pretrain"
OURS = {"task.vocabulary": PRETRAINED}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The base of all rows.

    Args:
      arg: As of `configs/intents.py`.
    """
    config = intents.get_config(arg)
    config.seeds = tuple(range(8))
    # About three texts share a row, the label of each at its first token.
    config.task.pack = config.task.length
    config.model.pool = "none"
    if config.train.steps > 20:  # no smoke
        config.task.train_examples = 1510
        config.train.update(steps=400, batch_size=16, eval_every=200)
    return config


def rows():
    yield "from scratch", OURS
    yield "pretrained", {**OURS, "train.pretrained": PRETRAINED}
