"""The rows of the first table on captions from German to English: mixing in the encoder, and storage.

    python -m experiments.ablate --config=configs/ablations/translation.py --workdir=runs/translations

The dataset is found as `configs/answers.py` says, whose model has two layers on each side here and sees the
captions one and a half times. The decoder attends densely in every row; schemes store the weights of both.
Linear attention tells no texts of one row apart: its captions have rows of their own, as many a step.
"""

from configs import answers
from configs.ablations import first
from tinyattn.config import override, parse_arg

SHORT = {
    "model.num_layers": 2,
    "model.decoder_layers": 2,
    "model.dropout": 0.0,
    "optim.warmup_steps": 150,
    "train.steps": 1600,
    "train.batch_size": 8,
    "train.eval_every": 400,
}
ALONE = {"task.pack": 0, "train.batch_size": 26}


def get_config(arg=None):
    """The base of all rows.

    Args:
      arg: `smoke` runs a few steps of one seed.
    """
    if parse_arg(arg, smoke=False).smoke:
        return answers.get_config(arg)
    config = override(answers.get_config(), SHORT)
    config.seeds = (0, 1, 2)
    return config


def rows():
    for name, changes in first.rows():
        yield name, changes | ALONE if name == "linear" else changes
