"""What pretraining without labels is worth where labels are few: fifty a digit, of MNIST's 55,000 images.

    python -m experiments.train  --config=configs/pretrain.py:task=mnist --workdir=runs/pretrain_mnist
    python -m experiments.ablate --config=configs/ablations/transfer_images.py --workdir=runs/from_images

Pretraining tells hidden patches of all training images without their labels, once for all seeds; the rows
learn from 500 of them. The dataset is found as `configs/mnist.py` says.

On two CPU cores, 19 minutes of pretraining with other work on them, then 40 s a run: from scratch
88.7 ± 1.5% of the test split, pretrained 94.9 ± 0.1%, +6.2 ± 1.5 points paired by seed (n=6, 95% t
intervals; sign-flip p=0.031).
"""

import ml_collections

from configs import mnist

PRETRAINED = "runs/pretrain_mnist"


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The base of all rows.

    Args:
      arg: As of `configs/mnist.py`.
    """
    config = mnist.get_config(arg)
    config.seeds = tuple(range(6))
    if config.train.steps > 20:  # no smoke
        config.task.train_examples = 500
        config.train.update(steps=600, batch_size=64, eval_every=300)
        config.optim.warmup_steps = 50
    return config


def rows():
    yield "from scratch", {}
    yield "pretrained", {"train.pretrained": PRETRAINED}
