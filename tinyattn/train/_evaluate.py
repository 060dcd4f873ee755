"""What a model says of a split, a batch after the other."""

from typing import Any

import jax
import numpy as np

from tinyattn.tasks import Predicted, Split
from tinyattn.train._step import Program

# Logits of a batch, at most, unless those of one example are more: 128 MiB.
LOGITS = 2**25


def evaluate(program: Program, theta: Any, split: Split, batch: int = 256) -> Predicted:
    """What is predicted of every example or token, and the losses of those that have a label.

    Args:
      program: Whose model.
      theta: Its weights.
      split: Examples.
      batch: Of them at once, at most; fewer where their logits are many.
    """
    an_example = np.prod(split.labels.shape[1:], initial=1) * program.task.num_classes
    batch = int(np.clip(LOGITS // an_example, 1, batch))
    # After training on several devices each holds a copy; one is enough.
    theta = jax.tree.map(lambda x: x.addressable_data(0) if hasattr(x, "sharding") else x, theta)
    labels, losses = [], []
    for start in range(0, len(split.labels), batch):
        part = jax.tree.map(lambda x, i=start: x[i : i + batch], split)
        # The last batch is filled up, so that one compiled program serves all.
        n = len(part.labels)
        fill = batch - n
        filled = jax.tree.map(lambda x, k=fill: np.concatenate([x, np.repeat(x[:1], k, 0)]), part)
        found, lost = (np.asarray(x)[:n] for x in program.judge(theta, filled))
        labels.append(found)
        losses.append(lost[part.labels >= 0])
    return Predicted(np.concatenate(labels), np.concatenate(losses))
