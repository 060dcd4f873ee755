"""What tasks of one label a text have in common: splits, the task, a baseline."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from tinyattn.tasks import Split, Task, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._source import Dataset
from tinyattn.tasks._texts import (
    SPLITS,
    UNLABELLED,
    Texts,
    augmentation,
    clean,
    named,
    size,
    splits,
)

START = _tokens.SPECIALS.index(_tokens.START)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Labelled(Texts):
    """
    Attributes:
      train_examples: Of the training split, stratified and always the same; 0 is all.
    """

    train_examples: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.train_examples < 0:
            raise ValueError(f"task.train_examples={self.train_examples} must not be negative")


def hold_out(frames: _steps.Frames, label: str, rows: int) -> _steps.Frames:
    """Splits a validation split off training, stratified by label and always the same."""
    train, validation = train_test_split(
        frames["train"],
        test_size=rows,
        random_state=0,
        stratify=frames["train"][label],
        shuffle=True,
    )
    return {**frames, "train": train.sort_index(), "validation": validation.sort_index()}


def few(frames: _steps.Frames, label: str, rows: int) -> _steps.Frames:
    """So many rows of training alone, stratified by label and always the same.

    Raises:
      ValueError: There are not more than these, or fewer than a class each.
    """
    train = frames["train"]
    classes = train[label].nunique()
    if not classes <= rows <= len(train) - classes:
        raise ValueError(
            f"task.train_examples={rows} must be {classes} (the classes) to {len(train) - classes} of"
            f" {len(train)} training rows, or 0 for all"
        )
    train, _ = train_test_split(train, train_size=rows, random_state=0, stratify=train[label])
    return {**frames, "train": train.sort_index()}


def classify(
    config: Labelled,
    dataset: str,
    data: Dataset,
    columns: _steps.Columns,
    *,
    validation: int = 0,
    names: tuple[str, ...],
    measure: Callable[..., dict[str, float]] = lambda split, predicted: {},
    **fields: Any,
) -> Task:
    """A task of one label a text, or a pair of texts.

    Args:
      config: The task's.
      dataset: Its name, for messages.
      data: Its rows.
      columns: Of the text or the two texts, and of the label.
      validation: Rows of training that are held out; 0 where the data have a validation split.
      names: Of the classes.
      measure: As in `Task`.
      **fields: Others of `Task`.
    """

    def make() -> Prepared:
        said = _steps.Told(config.broken)
        frames = clean(config, dataset, data, columns, said)
        if validation:
            frames = hold_out(frames, columns.label, validation)
            if "dedupe" in config.steps:  # between these two as well
                _steps.dedupe(frames, columns, said)
        if config.train_examples:
            frames = few(frames, columns.label, config.train_examples)
        texts = {c: {s: frames[s][c].tolist() for s in SPLITS} for c in columns.texts}
        tokenizer = _tokens.train(config, [t for c in columns.texts for t in texts[c]["train"]])
        arrays = {}
        for split in SPLITS:
            given = (texts[c][split] for c in columns.texts)
            rows = _tokens.encode(tokenizer, *given, length=config.length)
            said.cut(split, config.length, frames[split].index[rows.cut])
            fields = {"inputs": rows.ids, "key_valid": rows.key_valid}
            if len(columns.texts) > 1:
                fields["token_types"] = rows.types
            labels = frames[split][columns.label].to_numpy(np.int32)
            arrays |= named(split, fields, labels, config.pack)
        return Prepared(arrays, {_tokens.FILE: tokenizer.to_str()}, {"prepared": said.lines})

    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, make)
    parts = splits(found)
    return Task(
        **parts,
        num_classes=len(names),
        vocab_size=size(found),
        augment=augmentation(config),
        measure=measure,
        baselines=lambda: bag_of_words(parts, size(found), measure),
        files={**found.files, _asked.CLASSES: json.dumps(names)},
        told={"dataset": dataset, "fingerprint": fingerprint, **found.told},
        **fields,
    )


def bag_of_words(
    parts: Mapping[str, Split], vocab_size: int, measure: Callable[..., dict[str, float]]
) -> dict[str, float]:
    """Test numbers of a logistic regression on how often a text has each token, wherever.

    The same tokens as the model's; each text of a pair has a count of its own.
    """

    def counts(split: Split):
        # The number of a token's text: each starts with `[CLS]`.
        texts = np.cumsum(split.inputs == START).reshape(split.inputs.shape) - 1
        types = np.zeros_like(split.inputs) if split.token_types is None else split.token_types
        kept = split.inputs >= len(_tokens.SPECIALS)
        columns = split.inputs[kept] + vocab_size * types[kept]
        shape = (texts.max() + 1, vocab_size * (1 + int(split.token_types is not None)))
        entries = (np.ones(kept.sum()), (texts[kept], columns))
        return scipy.sparse.csr_array(entries, shape), split.labels[split.labels >= 0]

    found = LogisticRegression(max_iter=300).fit(*counts(parts["train"]))
    test = parts["test"]
    labels = np.full_like(test.labels, UNLABELLED)
    labels[test.labels >= 0] = found.predict(counts(test)[0])
    predicted = _metrics.Predicted(labels, np.zeros(0, np.float32))
    return {"accuracy": _metrics.accuracy(test.labels, labels)} | measure(test, predicted)
