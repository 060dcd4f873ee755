"""A character language model of Shakespeare's plays, in nanoGPT's setting for a CPU.

    python -m experiments.train --config=configs/chars.py --workdir=runs/chars

Three seeds, on two CPU cores that other work shared, some 250 s each: a loss of 1.897 ± 0.011 on the
validation split and 1.929 ± 0.015 on the test split (n=3, 95% t interval), 1.913 ± 0.013 over both, which
are nanoGPT's last tenth; nanoGPT prints 1.88.

The dataset comes from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`.
"""

import ml_collections

from configs import words
from tinyattn import tasks
from tinyattn.config import parse_arg

VOCABULARY = 70  # 65 characters and five special tokens


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config: that of `configs/words.py`, and what differs.

    Args:
      arg: `attention=NAME` picks a variant; `smoke` runs a few steps.
    """
    config = words.get_config(arg)
    config.task = tasks.spec("chars", vocab_size=VOCABULARY, length=words.LENGTH)
    config.model.update(
        vocab_size=VOCABULARY,
        num_classes=VOCABULARY,
        num_layers=4,
        ffn_width=512,
        dropout=0.0,
        init="truncated_normal",
        depth_scaling="residual",
    )
    config.optim.update(learning_rate=1e-3, end_factor=0.1, b2=0.99)
    if not parse_arg(arg, attention="dense", smoke=False).smoke:
        config.train.update(steps=2000, batch_size=12)
    return config
