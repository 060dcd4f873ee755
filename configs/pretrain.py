"""Pretraining without labels: what is hidden of the inputs of another config's task, by its own model.

    python -m experiments.train --config=configs/pretrain.py:task=intents --workdir=runs/pretrain
    python -m experiments.train --config=configs/intents.py --workdir=runs/intents \
        --config.train.pretrained=runs/pretrain --config.task.vocabulary=runs/pretrain
    python -m experiments.predict --workdir=runs/pretrain "what is the [MASK] of france"

The second command trains another head on the same body, with the same tokeniser: without it ids would mean
something else, which is refused. Images and speech have no tokeniser. What is taken and what is new is said
at the start. `configs/ablations/transfer.py` measures what it gains, `transfer_images.py` and
`transfer_speech.py` beside it what of images and of speech.
"""

import ml_collections

from configs import digits, fsdd, intents, mnist, sst2, trec, words
from tinyattn import tasks
from tinyattn.config import parse_arg

BASES = {
    "digits": digits,
    "fsdd": fsdd,
    "intents": intents,
    "mnist": mnist,
    "sst2": sst2,
    "trec": trec,
    "words": words,
}
# Of what has no tokens; neighbours tell much of a patch or a frame.
SHARES = {"patches": 0.6, "frames": 0.5}
# Hidden words of requests, and frames, go on being told better long after 2,000 steps.
STEPS = {"tokens": 10_000, "patches": 2000, "frames": 16_000}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `task=NAME` is a config whose task and model are taken; `attention=NAME` picks a variant; `smoke`
        runs a few steps.
    """
    chosen = parse_arg(arg, task="intents", attention="dense", smoke=False)
    if chosen.task not in BASES:
        raise ValueError(f"task={chosen.task!r}; give one of {', '.join(BASES)}")
    smoke = ",smoke" * chosen.smoke
    config = BASES[chosen.task].get_config(f"attention={chosen.attention}{smoke}")
    made = config.model
    causal = made.causal
    made.update(masked=True, causal=False, pool="none", dropout=0.0)
    # Outputs start near 0, and so the loss at what chance or the mean would have.
    made.init = "truncated_normal"
    if made.inputs == "tokens":
        made.update(num_classes=made.vocab_size, tied_head=True)
        # A stream of text has no padding; of others about three share a row.
        config.task.update(pack=0 if causal else config.task.length, token_dropout=0.0)
        config.train.batch_size = min(config.train.batch_size, 16)
        config.task = tasks.spec("masked", of=config.task.to_dict())
    else:
        frames = made.inputs == "frames"
        patch = 2**made.tokeniser if made.tokeniser or frames else made.patch
        made.num_classes = patch * (config.task.mels if frames else patch)
        if frames:
            config.task.update(time_mask=0, mel_mask=0)
        of, share = config.task.to_dict(), SHARES[made.inputs]
        config.task = tasks.spec("masked", of=of, share=share, patch=patch)
    config.train.label_smoothing = 0.0
    if not chosen.smoke:
        steps = STEPS[made.inputs]
        config.train.update(steps=steps, eval_every=steps // 4)
    return config
