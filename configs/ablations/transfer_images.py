"""What pretraining without labels is worth where labels are few: fifty a digit, of MNIST's 55,000 images.

    python -m experiments.train  --config=configs/pretrain.py:task=mnist --workdir=runs/pretrain_mnist
    python -m experiments.ablate --config=configs/ablations/transfer_images.py --workdir=runs/from_images

Pretraining tells hidden patches of all training images without their labels, once for all seeds; the rows
learn from 500 of them. The dataset is found as `configs/mnist.py` says.
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
