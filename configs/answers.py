"""Texts answered by texts, an encoder-decoder: captions from German to English, subject lines, summaries.

    python -m experiments.train --config=configs/answers.py --workdir=runs/translation
    python -m experiments.train --config=configs/answers.py:task=aeslc --workdir=runs/subjects
    python -m experiments.train --config=configs/answers.py:task=scitldr --workdir=runs/summaries

The datasets come from the hub, or from a directory of Parquet files: TINYATTN_DATA=DIRECTORY, or
`--config.data.dir=DIRECTORY`. Pieces of words, one table for all three uses of them.

Translation (n=3 seeds, 95% t intervals), several captions a row: BLEU 38.5 ± 0.6 and chrF 57.6 ± 0.5 of
the test split of 2016, in 22 to 26 minutes each on one of two CPU cores, other work on the other one,
with `--config.train.micro_batches=2`.

Subject lines (n=3 seeds, 95% t intervals): ROUGE-1 17.8 ± 1.4%, ROUGE-2 6.4 ± 0.9% and ROUGE-L 17.7 ±
1.4%, where the first words of the text have 5.2%, 2.1% and 5.2%; 16 to 18 minutes each on one of two
CPU cores, other work on both. A copied name sometimes lacks its first piece.

Summaries, one run, seed 0, on an H200, when tables were not yet multiplied by the root of their width,
and not run again: ROUGE-L 20.2%, where the first words have 24.4%. `configs/extractive.py`, which
chooses one of their sentences, has 34.7%.
"""

import ml_collections

from tinyattn import attention, model, optim, registry, tasks, train
from tinyattn.config import override, parse_arg

VOCABULARY = 8000

# Captions are short: several pairs share a row, and 16 rows are some 53 of them.
CAPTIONS = {
    "task.pack": 64,
    "task.vocab_size": 4000,
    "model.vocab_size": 4000,
    "model.num_classes": 4000,
    "optim.learning_rate": 2e-3,
}
# Words of a subject line mostly stand in the text, and are copied.
SUBJECTS = {"model.pointer": True, "model.dropout": 0.2, "task.length": 64}
# How long it is trained, but for a smoke test.
LONG = {
    "optim.warmup_steps": 200,
    "train.steps": 1500,
    "train.batch_size": 64,
    "train.micro_batches": 4,
    "train.eval_every": 250,
    "train.patience": 0,
}


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
    """The run's config.

    Args:
      arg: `task=NAME` is `multi30k`, `aeslc` or `scitldr`; `attention=NAME` picks the variant of the
        encoder (one that tells texts of a row apart, or with `--config.task.pack=0`); `smoke` runs a few
        steps.
    """
    chosen = parse_arg(arg, task="multi30k", attention="dense", smoke=False)
    config = ml_collections.ConfigDict()
    config.seeds = (0,)
    config.task = tasks.spec(chosen.task, vocab_size=VOCABULARY, beams=4)
    # Where its dataset is, which changes nothing.
    config.data = registry.defaults(tasks.Source)
    config.model = model.spec(
        inputs="tokens",
        vocab_size=VOCABULARY,
        num_classes=VOCABULARY,
        width=128,
        num_layers=3,
        decoder_layers=3,
        ffn_width=512,
        dropout=0.1,
        positions="sinusoidal",
        pool="none",
        tied_head=True,
        shared_table=True,
        attention=attention.spec(chosen.attention, num_heads=4),
        decoder_attention=attention.spec("dense", num_heads=4),
        cross_attention=attention.spec("dense", num_heads=4),
    )
    config.weights = ()
    config.optim = registry.defaults(optim.Config) | dict(
        learning_rate=1e-3,
        schedule="cosine",
        warmup_steps=5 if chosen.smoke else 500,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    config.train = registry.defaults(train.Config) | dict(
        steps=20 if chosen.smoke else 6000,
        batch_size=8 if chosen.smoke else 128,
        eval_every=10 if chosen.smoke else 1000,
        steps_per_dispatch=10,
        label_smoothing=0.1,
        patience=0 if chosen.smoke else 2,
    )
    # Seconds between checkpoints; -1 saves as often as costs 1% of the time.
    config.checkpoint = dict(every_seconds=-1.0, keep=2)
    changes = {}
    if chosen.task == "multi30k":
        changes = CAPTIONS | {"train.batch_size": 4 if chosen.smoke else 16}
    if chosen.task == "aeslc":
        changes = SUBJECTS if chosen.smoke else SUBJECTS | LONG
    return override(config, changes)
