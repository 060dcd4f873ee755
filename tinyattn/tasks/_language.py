"""Language models: a text as one stream, in rows that follow each other without padding."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyattn.tasks import Asked, Source, Split, Task, Writing, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._metrics import Predicted
from tinyattn.tasks._texts import SPLITS, UNLABELLED, Texts, augmentation, clean, splits

TEXT = "text"
END = "[EOS]"
SPECIALS = (*_tokens.SPECIALS, END)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Language(Texts):
    """The fields of all tasks of texts, but that rows follow each other, so that nothing is cut off.

    An empty text is a line as others are, and lines repeat.
    """

    steps: tuple[str, ...] = ("missing",)

    def __post_init__(self):
        super().__post_init__()
        if self.pack:
            raise ValueError(f"task.pack={self.pack}: these rows have no padding; set it to 0")


def language(
    config: Language, dataset: str, name: str, source: Source, *, line_ends: bool, **fields: Any
) -> Task:
    """A task of the next token.

    Args:
      config: The task's; its `length` is that of a row.
      dataset: As on the hub, with the column `text`.
      name: Of its config.
      source: Where it is.
      line_ends: Whether a row of the dataset is a line, which `[EOS]` ends; one stands before the first.
      **fields: Others of `Task`.
    """
    data = source.read(dataset, name, SPLITS, (TEXT,))

    def make() -> Prepared:
        said = _steps.Told(config.broken)
        frames = clean(config, dataset, data, _steps.Columns((TEXT,), empty=True), said)
        texts = {split: frames[split][TEXT].tolist() for split in SPLITS}
        tokenizer = _tokens.train(config, texts["train"], SPECIALS)
        end = tokenizer.token_to_id(END) if line_ends else None
        arrays = {}
        for split in SPLITS:
            stream = _stream(tokenizer, texts[split], end)
            unknown = int((stream == tokenizer.token_to_id(_tokens.UNKNOWN)).sum())
            if unknown:
                said.lines.append(
                    {"step": "tokens", "split": split, "what": "unknown", "tokens": unknown}
                )
            # What is left of training is less than a row.
            found = blocks(stream, config.length, whole=split == "train")
            arrays |= {f"{split}/{key}": x for key, x in found.items()}
        return Prepared(arrays, {_tokens.FILE: tokenizer.to_str()}, {"prepared": said.lines})

    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, make)
    return Task(
        **splits(found),
        # As many as are asked for, whether or not the text has them: a model's sizes hang on no data.
        num_classes=config.vocab_size,
        vocab_size=config.vocab_size,
        augment=augmentation(config),
        files=found.files,
        told={"dataset": dataset, "fingerprint": fingerprint, **found.told},
        measure=measure,
        **fields,
    )


def asked(config: Language, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Texts that the model goes on with, as many tokens as a row has.

    Raises:
      ValueError: A text is empty.
    """
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    rows, texts = [], _steps.normalise(lines, config.steps)
    for number, ids in enumerate(_tokens.ids(tokenizer, texts, SPECIALS), 1):
        if not len(ids):
            raise ValueError(f"line {number} is empty; give the beginning of a text")
        # What lies farther back than a row was never seen in training.
        rows.append(ids[-config.length // 2 :])
    inputs = np.zeros((len(rows), max(map(len, rows))), np.int32)
    valid = np.zeros(inputs.shape, bool)
    for i, ids in enumerate(rows):
        inputs[i, : len(ids)], valid[i, : len(ids)] = ids, True
    end = tokenizer.token_to_id(END)
    writing = Writing(
        start=end,
        end=end,
        length=config.length // 2,
        text=lambda ids: tokenizer.decode([int(i) for i in ids]),
    )
    return Asked(_asked.unlabelled(inputs, valid), writing=writing)


def measure(split: Split, predicted: Predicted) -> Mapping[str, float]:
    """Perplexity of a token, and its loss in bits."""
    return _metrics.perplexity(predicted.losses)


def _stream(tokenizer, texts: list[str], end: int | None) -> np.ndarray:
    found = _tokens.ids(tokenizer, texts, SPECIALS)
    if end is None:
        return np.concatenate([np.asarray(line, np.int32) for line in found])
    # The first line begins after the end of another.
    lines = [np.array([end], np.int32), *(np.array([*line, end], np.int32) for line in found)]
    return np.concatenate(lines)


def blocks(stream: np.ndarray, length: int, whole: bool) -> dict[str, np.ndarray]:
    """Inputs and labels [n, T], the label of a token the next one; each but the first is a label once.

    Args:
      stream: int32 [m].
      length: T.
      whole: Whether the last row is left out where it is not whole; else it is filled up, unlabelled.

    Raises:
      ValueError: The stream is shorter than a row and `whole`.
    """
    n = len(stream) - 1
    if whole and n < length:
        raise ValueError(
            f"the training text has {n + 1} tokens, fewer than a row and its next token: lower"
            f" task.length={length}"
        )
    count = n // length if whole else -(-n // length)
    fill = max(count * length - n, 0)
    inputs = np.pad(stream[:-1], (0, fill))[: count * length]
    labels = np.pad(stream[1:], (0, fill), constant_values=UNLABELLED)[: count * length]
    shape = (count, length)
    return {
        "inputs": inputs.astype(np.int32).reshape(shape),
        "labels": labels.astype(np.int32).reshape(shape),
    }
