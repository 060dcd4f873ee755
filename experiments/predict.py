"""Answers with a finished run: what a text, an image file or a WAV file is, or the text that follows.

    python -m experiments.predict --workdir=runs/trec "Who wrote Faust ?" "How far is the moon ?"
    python -m experiments.predict --workdir=runs/first --row=dense --seed=0 three.png seven.png
    python -m experiments.predict --workdir=runs/translation < captions.de
    python -m experiments.predict --workdir=runs/pretrain "what is the [MASK] of france"

Each argument, or without arguments each line of the standard input, is one input, and one line of JSON is
the answer: the class with the probabilities of the likeliest ones, a score, a tag for each word, a text, or
the likeliest words for each `[MASK]`. Of pairs a line has two texts, or an image file and a WAV file, and a
tab between them.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from experiments import export
from tinyattn import generate, model, records, sweep, tasks, weights

BATCH = 64


def answers(folder: Path, record: dict[str, Any], lines: Sequence[str]) -> Iterator[dict[str, Any]]:
    """An answer to each line, by the weights of a run.

    Args:
      folder: Of the run.
      record: Of the run.
      lines: Texts, or names of files.

    Raises:
      ValueError: The run kept no weights, or a line is refused.
    """
    theta = export.kept(folder, record).theta
    params = jax.tree.map(jnp.asarray, weights.fold(theta))
    transformer = model.build(record["config"]["model"])
    files = {
        path.name: path.read_text(encoding="utf-8")
        for path in folder.glob("*.json")
        if path.name != records.RECORD
    }
    asked = tasks.asked(record["config"]["task"], files, lines)
    if asked.writing is not None:
        written = _written(transformer, params, asked)
        yield from ({"answer": asked.writing.text(ids)} for ids in written)
        return
    apply = jax.jit(lambda params, given: transformer.apply({"params": params}, **given))
    logits = [
        np.asarray(apply(params, given))[:count] for given, count in _batches(asked.split.given)
    ]
    yield from asked.answers(np.concatenate(logits))


def _batches(given: dict[str, np.ndarray]) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Inputs in parts of one size, the last filled up, and how many of each are meant."""
    n = len(jax.tree.leaves(given)[0])
    size = min(n, BATCH)
    for first in range(0, n, size):
        rows = np.minimum(np.arange(first, first + size), n - 1)
        yield jax.tree.map(lambda x, i=rows: x[i], given), min(size, n - first)


def _written(transformer: model.Transformer, params, asked: tasks.Asked) -> list[np.ndarray]:
    """Ids of what an encoder-decoder answers, or of what a decoder goes on with."""
    how, split = asked.writing, asked.split
    if transformer.config.decoder_layers:
        return sweep.answers(transformer, params, split, how, min(BATCH, len(split.inputs)))
    write = generate.greedy(transformer, steps=how.length, eos=how.end)
    found = write(params, split.inputs, split.key_valid.sum(1))
    pairs = zip(np.asarray(found.ids), np.asarray(found.length), strict=True)
    return [ids[:count] for ids, count in pairs]


def main(argv: list[str]) -> None:
    given = flags.FLAGS
    lines = argv[1:] or [line.rstrip("\r\n") for line in sys.stdin]
    try:
        if not lines:
            raise ValueError(
                "nothing is asked: give texts or files as arguments, or lines on stdin"
            )
        folder, record = export.find(given.workdir, given.row, given.seed)
        for answer in answers(folder, record, lines):
            print(json.dumps(answer, ensure_ascii=False))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Directory of a table, or of one run.", required=True)
    flags.DEFINE_string("row", None, "Row of the table; needed where there are several.")
    flags.DEFINE_integer("seed", None, "Seed of the run; needed where there are several.")
    app.run(main)
