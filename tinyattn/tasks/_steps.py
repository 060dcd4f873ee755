"""Preparation of texts as a chain of named steps, which says what it drops.

Cleaning: `missing` and `duplicates` drop rows, `count_duplicates` counts them, `dedupe` drops from training
and validation what a later split has too. Normalisation: `nfkc`, `lower`, `strip_accents`, `whitespace`.
A dotted name is a fork's own function, (frames, columns, told) like those here, which change `frames`.
"""

import importlib
import logging
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from tinyattn import registry

SPLITS = ("train", "validation", "test")
BROKEN = ("drop", "raise")
SHOWN = 5  # row numbers that a report names

Frames = dict[str, pd.DataFrame]


class Columns(NamedTuple):
    """Which columns the steps are about.

    Attributes:
      texts: Those of text.
      label: That of labels; "" where there is none.
      classes: Labels are 0..classes - 1; 0 is any.
      empty: Whether an empty text is a row like another, as a blank line of a language model's text.
      read: Texts that a model reads, which no two splits may share; () is all of them.
    """

    texts: tuple[str, ...]
    label: str = ""
    classes: int = 0
    empty: bool = False
    read: tuple[str, ...] = ()


class Told:
    """What the steps did to rows, for the log and the record."""

    def __init__(self, broken: str):
        self._broken = broken
        self.lines: list[dict[str, Any]] = []

    def say(self, step: str, split: str, what: str, rows: Sequence[int]) -> None:
        """Remembers rows of a split, of which the first numbers are named."""
        if len(rows):
            first = [int(row) for row in rows[:SHOWN]]
            line = {"step": step, "split": split, "what": what, "rows": len(rows), "first": first}
            self.lines.append(line)

    def drop(self, frames: Frames, step: str, split: str, what: str, bad: np.ndarray) -> None:
        """Drops the rows where `bad`, or refuses them where broken rows are fatal.

        Raises:
          ValueError: There are some, and `broken` is `raise`.
        """
        rows = frames[split].index[bad]
        if len(rows) and self._broken == "raise":
            raise ValueError(
                f"row {rows[0]} of the {split} split and {len(rows) - 1} more: {what}; mend them, or set"
                f" task.broken='drop'"
            )
        self.say(step, split, f"dropped: {what}", rows)
        frames[split] = frames[split][~bad]

    def cut(self, split: str, length: int, rows: Sequence[int]) -> None:
        """Remembers texts that are longer than a row."""
        self.say("length", split, f"cut off at {length} tokens", rows)

    def log(self, dataset: str) -> None:
        """One line for each step and split that touched rows."""
        for line in self.lines:
            first = ", ".join(map(str, line["first"])) + ", ..." * (line["rows"] > SHOWN)
            logging.getLogger(__name__).warning(
                "%s, %s split, %s: %d rows %s (%s)",
                dataset, line["split"], line["step"], line["rows"], line["what"], first,
            )  # fmt: skip


def missing(frames: Frames, columns: Columns, told: Told) -> None:
    """Rows without a text or a label, or with one that is none of the classes."""
    for split in frames:
        frame = frames[split]
        bad = np.zeros(len(frame), bool)
        for column in columns.texts:
            text = frame[column]
            # Not "": a text of spaces alone has no word either.
            bad |= text.isna() | ((text.str.strip() == "") & (not columns.empty))
        told.drop(frames, "missing", split, f"no {' or '.join(columns.texts)}", np.asarray(bad))
        if columns.label:
            label = frames[split][columns.label]
            bad = label.isna() | (label < 0)
            bad |= (label >= columns.classes) if columns.classes else False
            told.drop(frames, "missing", split, f"no valid {columns.label}", np.asarray(bad))


def _keys(frame: pd.DataFrame, columns: Columns) -> pd.Series:
    """What makes rows the same: their texts, whatever their label."""
    return pd.Series(
        list(zip(*(frame[c] for c in columns.texts), strict=True)), frame.index, object
    )


def count_duplicates(frames: Frames, columns: Columns, told: Told) -> None:
    """Says how many rows of a split repeat the texts of one before; all stay."""
    for split, frame in frames.items():
        again = _keys(frame, columns).duplicated()
        told.say("count_duplicates", split, "repeat a text, and stay", frame.index[again])


def duplicates(frames: Frames, columns: Columns, told: Told) -> None:
    """Drops training rows whose texts stand before with the same label, and all of texts with several."""
    frame = frames["train"]
    keys = _keys(frame, columns)
    if columns.label:
        kinds = frame[columns.label].groupby(keys).transform("nunique")
        several = np.asarray(kinds > 1)
        told.say("duplicates", "train", "dropped: a text with several labels", frame.index[several])
        frame, keys = frame[~several], keys[~several]
    again = np.asarray(keys.duplicated())
    told.say("duplicates", "train", "dropped: repeat a text", frame.index[again])
    frames["train"] = frame[~again]


def dedupe(frames: Frames, columns: Columns, told: Told) -> None:
    """Drops from training and validation what a later split has too, so that no test text is trained on."""
    seen: set[Any] = set()
    chosen = [name for name in SPLITS[1::-1] if name in frames]
    for split in [name for name in frames if name not in chosen] + chosen:
        frame = frames[split]
        keys = _keys(frame, columns._replace(texts=columns.read or columns.texts))
        if split in chosen:
            bad = np.asarray(keys.isin(seen))
            told.say("dedupe", split, "dropped: a later split has the text too", frame.index[bad])
            frames[split] = frame[~bad]
        seen |= set(keys)


def _each(change: Callable[[str], str]) -> Callable[[Frames, Columns, Told], None]:
    """A step that changes every text."""

    def step(frames: Frames, columns: Columns, told: Told) -> None:
        for split, frame in frames.items():
            changed = {c: frame[c].map(change, na_action="ignore") for c in columns.texts}
            frames[split] = frame.assign(**changed)

    return step


def _unaccented(text: str) -> str:
    parts = unicodedata.normalize("NFD", text)
    return unicodedata.normalize("NFC", "".join(x for x in parts if not unicodedata.combining(x)))


STEPS: Mapping[str, Callable[[Frames, Columns, Told], None]] = {
    "missing": missing,
    "duplicates": duplicates,
    "count_duplicates": count_duplicates,
    "dedupe": dedupe,
    "nfkc": _each(lambda text: unicodedata.normalize("NFKC", text)),
    "lower": _each(str.lower),
    "strip_accents": _each(_unaccented),
    "whitespace": _each(lambda text: " ".join(text.split())),
}


def step(name: str) -> Callable[[Frames, Columns, Told], None]:
    """The step of a name, or a fork's own by its dotted name.

    Raises:
      ValueError: There is none.
    """
    if "." in name:
        module, _, function = name.rpartition(".")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise ValueError(f"the step {name!r} cannot be imported: {error}") from error
    if name not in STEPS:
        raise ValueError(f"there is no step {name!r}; {registry.nearest(name, STEPS)}")
    return STEPS[name]


def normalise(texts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Texts as the steps leave them, for answering about new ones.

    Raises:
      ValueError: A fork's own step drops one of them.
    """
    frame = pd.DataFrame({"text": pd.Series(texts, dtype=object)})
    frames = {"train": frame[:0], "test": frame}
    for name in names:
        step(name)(frames, Columns(("text",), empty=True), Told("drop"))
        if len(frames["test"]) < len(texts):
            raise ValueError(
                f"the step {name!r} drops {len(texts) - len(frames['test'])} of the {len(texts)} texts that"
                f" are asked about: give others, or let it drop rows of the train split alone"
            )
    return frames["test"]["text"].tolist()
