"""What a model of texts has to beat: linear models of how often a text has each of the same tokens."""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression, Ridge

from tinyattn.tasks import Split, Task, _metrics, _tokens
from tinyattn.tasks._texts import UNLABELLED

START = _tokens.SPECIALS.index(_tokens.START)
# As `Task.measure`.
Measure = Callable[[Split, _metrics.Predicted], dict[str, float]]


def bag_of_words(task: Task, measure: Measure) -> dict[str, float]:
    """Test numbers of a logistic regression on how often a text has each token, wherever.

    The same tokens as the model's; each text of a pair has a count of its own.
    """
    train, test = task.train, task.test
    found = LogisticRegression(max_iter=300).fit(
        _counts(train, task.vocab_size), train.labels[train.labels >= 0]
    )
    labels = np.full_like(test.labels, UNLABELLED)
    labels[test.labels >= 0] = found.predict(_counts(test, task.vocab_size))
    predicted = _metrics.Predicted(labels, np.zeros(0, np.float32))
    return {"accuracy": _metrics.accuracy(test.labels, labels)} | measure(test, predicted)


def shared_words(task: Task, measure: Measure) -> dict[str, float]:
    """Test numbers of a ridge regression on the tokens that the texts of a pair share, and on the others.

    Of each token its share of all that stand in one of the two; and the share of all that they have both.
    """

    def shares(split: Split):
        found = _counts(split, task.vocab_size).tocsc()
        first, second = (found[:, i : i + task.vocab_size] for i in (0, task.vocab_size))
        both, apart = first.minimum(second), abs(first - second)
        every = np.maximum(both.sum(1) + apart.sum(1), 1)
        columns = [both.sum(1)[:, None], both, apart]
        return scipy.sparse.hstack(columns, "csr").multiply(1 / every[:, None]).tocsr()

    train, test = task.train, task.test
    there = test.labels >= 0
    made = Ridge().fit(shares(train), train.targets[train.labels >= 0])
    found = np.zeros_like(test.targets)
    found[there] = made.predict(shares(test)).reshape(-1, 1)
    losses = ((found - test.targets) ** 2)[there].mean(-1)
    predicted = _metrics.Predicted(found, losses)
    return {"loss": float(losses.mean())} | measure(test, predicted)


def _counts(split: Split, vocab_size: int) -> scipy.sparse.csr_array:
    """[texts, vocab_size], of pairs [texts, 2 * vocab_size]: how often each has a token."""
    # The number of a token's text: each starts with `[CLS]`.
    texts = np.cumsum(split.inputs == START).reshape(split.inputs.shape) - 1
    types = np.zeros_like(split.inputs) if split.token_types is None else split.token_types
    kept = split.inputs >= len(_tokens.SPECIALS)
    columns = split.inputs[kept] + vocab_size * types[kept]
    shape = (texts.max() + 1, vocab_size * (1 + int(split.token_types is not None)))
    return scipy.sparse.csr_array((np.ones(kept.sum()), (texts[kept], columns)), shape)
