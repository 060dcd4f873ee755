"""What a model writes for the test split."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import generate, model, train, weights
from tinyattn.tasks import Split, Writing


def written(program: train.Program, theta: Any) -> list[str]:
    """The answers to a task's test split, by the search that the task asks for."""
    params, how = jax.jit(weights.fold)(jax.tree.map(jnp.asarray, theta)), program.task.writing
    return [how.text(ids) for ids in answers(program.model, params, program.task.test, how)]


def answers(
    transformer: model.Transformer, params: Any, split: Split, how: Writing, batch: int = 64
) -> list[np.ndarray]:
    """Ids of an answer to each example, without its end.

    Args:
      transformer: An encoder-decoder.
      params: Of it.
      split: Of which the labels and the prefix are not looked at.
      how: Which search, and for how many tokens.
      batch: Examples side by side.
    """
    settings = {"steps": how.length, "eos": how.end}
    if how.beams == 1:
        write = generate.greedy(transformer, **settings)
    else:
        write = generate.beam(transformer, **settings, beams=how.beams, alpha=how.alpha)
    n, found = len(split.inputs), []
    start = np.full((batch, 1), how.start, np.int32)
    for first in range(0, n, batch):
        # The last batch is filled up, so that one compiled program serves all.
        rows = np.minimum(np.arange(first, first + batch), n - 1)
        given = {name: x[rows] for name, x in split.given.items() if name != "prefix"}
        ids, length = map(np.asarray, write(params, start, **given)[:2])
        if how.beams > 1:  # the best one comes first
            ids, length = ids[:, 0], length[:, 0]
        found += [x[:k] for x, k in zip(ids, length, strict=True)]
    return [x[:-1] if len(x) and x[-1] == how.end else x for x in found[:n]]
