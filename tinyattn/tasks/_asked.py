"""New inputs of a task, and what a person is told of them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy.special

from tinyattn.tasks import Asked, Split, _steps, _tokens

CLASSES = "classes.json"
# Likeliest classes that an answer names.
NAMED = 3


def texts(config: Any, files: Mapping[str, str], *lines: Sequence[str]) -> _tokens.Encoded:
    """Texts, or pairs of them, prepared as those of training were.

    Args:
      config: Of a task of texts.
      files: Of the run.
      *lines: The texts; of pairs the first ones, then the second ones.

    Raises:
      ValueError: A text is empty, or longer than the model reads.
    """
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    made = []
    for part in lines:
        check_there(part)
        made.append(_steps.normalise(part, config.steps))
    rows = _tokens.encode(tokenizer, *made, length=config.length)
    if len(rows.cut):
        number = int(rows.cut[0])
        pieces = [_tokens.ids(tokenizer, [part[number]]) for part in made]
        tokens = sum(1 + len(ids) for (ids,) in pieces)
        raise ValueError(
            f"line {number + 1} has {tokens} tokens, and the model reads {config.length}: shorten it,"
            f" or train with more task.length"
        )
    return rows


def check_there(lines: Sequence[str]) -> None:
    """Refuses a line that has no text."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ValueError(f"line {number} is empty; give a text")


def columns(lines: Sequence[str], what: str) -> list[tuple[str, ...]]:
    """The first and the second halves of lines that have two, a tab between them; `what` these are.

    Raises:
      ValueError: A line has no tab, or several.
    """
    parts = [line.split("\t") for line in lines]
    for number, part in enumerate(parts, 1):
        if len(part) != 2:
            raise ValueError(
                f"line {number} has {len(part)} parts; give {what}, and a tab between them"
            )
    return list(zip(*parts, strict=True))


def unlabelled(inputs: np.ndarray, key_valid: np.ndarray | None = None) -> Split:
    """Inputs as a split."""
    return Split(inputs, np.zeros(len(inputs), np.int32), key_valid)


def classify(config: Any, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Texts to classify: the `asked` of tasks with one label a text."""
    rows = texts(config, files, lines)
    return Asked(unlabelled(rows.ids, rows.key_valid), classes(json.loads(files[CLASSES])))


def classes(names: Sequence[str]) -> Callable[[np.ndarray], list[dict[str, Any]]]:
    """Logits -> the likeliest class of each example, its probability, and the next likeliest."""

    def answers(logits: np.ndarray) -> list[dict[str, Any]]:
        # Of packed texts the label stands at the first token.
        shares = scipy.special.softmax(logits if logits.ndim == 2 else logits[:, 0], axis=-1)
        found = []
        for row in shares:
            order = np.argsort(-row, kind="stable")[:NAMED]
            named = {names[i]: round(float(row[i]), 4) for i in order}
            found.append({"answer": names[order[0]], "probabilities": named})
        return found

    return answers
