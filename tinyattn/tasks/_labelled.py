"""What tasks of one label, or one score, a text have in common: splits, the task."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from tinyattn.tasks import Split, Task, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._bags import bag_of_words, shared_words
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._source import Dataset
from tinyattn.tasks._texts import SPLITS, Texts, augmentation, clean, named, size, splits


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
    """Splits a validation split off training, stratified by label, or whole score, and always the same."""
    train, validation = train_test_split(
        frames["train"],
        test_size=rows,
        random_state=0,
        stratify=frames["train"][label].round(),
        shuffle=True,
    )
    return {**frames, "train": train.sort_index(), "validation": validation.sort_index()}


def few(frames: _steps.Frames, label: str, rows: int) -> _steps.Frames:
    """So many rows of training alone, stratified by label, or whole score, and always the same.

    Raises:
      ValueError: There are not more than these, or fewer than a class each.
    """
    train = frames["train"]
    kinds = train[label].round()
    classes = kinds.nunique()
    if not classes <= rows <= len(train) - classes:
        raise ValueError(
            f"task.train_examples={rows} must be {classes} (the classes) to {len(train) - classes} of"
            f" {len(train)} training rows, or 0 for all"
        )
    train, _ = train_test_split(train, train_size=rows, random_state=0, stratify=kinds)
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
      data: Its rows; splits beside the three are `Task.others`.
      columns: Of the text or the two texts, and of the label.
      validation: Rows of training that are held out; 0 where the data have a validation split.
      names: Of the classes.
      measure: As in `Task`.
      **fields: Others of `Task`.
    """
    task = _task(config, dataset, data, columns, validation)
    return task._replace(
        num_classes=len(names),
        measure=measure,
        baselines=lambda: bag_of_words(task, measure),
        files={**task.files, _asked.CLASSES: json.dumps(names)},
        **fields,
    )


def regress(
    config: Labelled,
    dataset: str,
    data: Dataset,
    columns: _steps.Columns,
    *,
    validation: int = 0,
) -> Task:
    """A task of one score a pair of texts, judged by how it correlates.

    Args:
      config: The task's.
      dataset: Its name, for messages.
      data: Its rows.
      columns: Of the two texts, and of the score.
      validation: Rows of training that are held out; 0 where the data have a validation split.

    Raises:
      ValueError: The column is one of something else.
    """
    kind = data["train"].features[columns.label]
    if "float" not in getattr(kind, "dtype", ""):
        raise ValueError(
            f"{dataset}: column {columns.label!r} is {kind}, not a score: make the files with the hub's"
            f" schema, of floats"
        )
    task = _task(config, dataset, data, columns, validation, scores=True)
    return task._replace(
        num_classes=1,
        metric=_metrics.PEARSON,
        measure=_correlations,
        baselines=lambda: shared_words(task, _correlations),
    )


def _task(
    config: Labelled,
    dataset: str,
    data: Dataset,
    columns: _steps.Columns,
    validation: int,
    scores: bool = False,
) -> Task:
    """The task but for its classes and what judges it."""

    def make() -> Prepared:
        said = _steps.Told(config.broken)
        frames = clean(config, dataset, data, columns, said)
        if validation:
            frames = hold_out(frames, columns.label, validation)
            if "dedupe" in config.steps:  # between these two as well
                _steps.dedupe(frames, columns, said)
        if config.train_examples:
            frames = few(frames, columns.label, config.train_examples)
        texts = {c: {s: frames[s][c].tolist() for s in frames} for c in columns.texts}
        tokenizer = _tokens.train(config, [t for c in columns.texts for t in texts[c]["train"]])
        arrays = {}
        for split, frame in frames.items():
            given = (texts[c][split] for c in columns.texts)
            rows = _tokens.encode(tokenizer, *given, length=config.length)
            said.cut(split, config.length, frame.index[rows.cut])
            fields = {"inputs": rows.ids, "key_valid": rows.key_valid}
            if len(columns.texts) > 1:
                fields["token_types"] = rows.types
            labels, targets = frame[columns.label].to_numpy(), None
            if scores:
                targets = labels.astype(np.float32)[:, None]
                labels = np.zeros(len(labels))
            arrays |= named(split, fields, labels.astype(np.int32), config.pack, targets)
        return Prepared(arrays, {_tokens.FILE: tokenizer.to_str()}, {"prepared": said.lines})

    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, make)
    parts = splits(found)
    return Task(
        **{name: parts.pop(name) for name in SPLITS},
        others=parts,
        num_classes=0,
        vocab_size=size(found),
        augment=augmentation(config),
        files=found.files,
        told={"dataset": dataset, "fingerprint": fingerprint, **found.told},
    )


def _correlations(split: Split, predicted: _metrics.Predicted) -> dict[str, float]:
    there = split.labels >= 0
    return _metrics.correlations(split.targets[there][:, 0], predicted.labels[there][:, 0])
