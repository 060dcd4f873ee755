"""Extractive summaries: which sentence of an abstract says best what the paper is about.

    read      [CLS] many have tried . [SEP] we propose a parser . [SEP] it is fast .
    targets   ROUGE of the first      of the second               of the third

The sentence of which most is expected is the summary: nothing is written, so that a small encoder will do.

Source: Liu & Lapata 2019, "Text summarization with pretrained encoders", https://arxiv.org/abs/1908.08345,
  section 3.1: a special token before each sentence whose output scores it, and two token types that take
  turns. The data are those of `scitldr`.
Differs: a sentence's targets are its own ROUGE-1, 2 and L, the best of several references for each, with
  their squared errors; and one sentence is chosen, without those of other texts' number.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyattn.tasks import Asked, Metric, Source, Split, Task, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._metrics import ROUGE, Predicted
from tinyattn.tasks._sequences import first_words, joined
from tinyattn.tasks._texts import UNLABELLED, Texts, augmentation, clean, size, splits
from tinyattn.tasks.scitldr import ABSTRACT, DATASET, NAME, SUMMARY

LEAD = "lead.json"
# A sentence ends before white space and what may begin one.
END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Texts):
    """
    Attributes:
      sentences: Of a text that may be chosen, from its first on (A); one with more is counted.
    """

    tokenizer: str = "wordpiece"
    vocab_size: int = 4000
    length: int = 320
    sentences: int = 16

    def __post_init__(self):
        if self.pack:
            raise ValueError(
                f"task.pack={self.pack}: a row is one text, whose sentences are compared; set it to 0"
            )
        super().__post_init__()
        if self.sentences < 1:
            raise ValueError(f"task.sentences={self.sentences} must be at least 1")


class Rows(NamedTuple):
    """Texts as rows of ids, a special token before each of their sentences.

    Attributes:
      ids: int32 [n, T].
      key_valid: bool [n, T].
      types: int32 [n, T], 0 and 1 from one sentence to the next.
      at: int32 [n, A], where each sentence's special token is; 0 where there is no sentence.
      counts: int [n], sentences that have one.
      cut: Rows of texts that had more tokens or sentences.
    """

    ids: np.ndarray
    key_valid: np.ndarray
    types: np.ndarray
    at: np.ndarray
    counts: np.ndarray
    cut: np.ndarray


def load(config: Config, source: Source) -> Task:
    """The abstracts in memory."""
    data = source.read(DATASET, NAME, _steps.SPLITS, (ABSTRACT, SUMMARY))
    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, lambda: _prepare(config, data))
    parts = splits(found)
    return Task(
        **parts,
        num_classes=len(ROUGE),
        vocab_size=size(found),
        augment=augmentation(config),
        metric=Metric(ROUGE[-1]),
        measure=_measure,
        baselines=lambda: json.loads(found.files[LEAD]),
        files={_tokens.FILE: found.files[_tokens.FILE]},
        told={"dataset": DATASET, "fingerprint": fingerprint, **found.told},
    )


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Texts of which a sentence is the answer.

    Raises:
      ValueError: A text is empty, or has more tokens or sentences than the model reads.
    """
    _asked.check_there(lines)
    texts = [sentences(line) for line in lines]
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    rows = _rows(config, tokenizer, _normalised(config, texts))
    if len(rows.cut):
        raise ValueError(
            f"line {rows.cut[0] + 1} has more than {config.length} tokens or {config.sentences} sentences,"
            f" which is what the model reads: shorten it, or train with more task.length and"
            f" task.sentences"
        )

    def answers(outputs: np.ndarray) -> list[dict[str, Any]]:
        best = _chosen(outputs, np.arange(rows.at.shape[1]) < rows.counts[:, None])
        expected = outputs[np.arange(len(best)), best, -1]
        return [
            {"answer": text[i], f"expected_{ROUGE[-1]}": round(float(x), 4)}
            for text, i, x in zip(texts, best, expected, strict=True)
        ]

    split = _asked.unlabelled(rows.ids, rows.key_valid)
    return Asked(split._replace(token_types=rows.types, at=rows.at), answers)


def sentences(text: str) -> list[str]:
    """A text cut where sentences seem to end.

    >>> sentences("We try, e.g. by hand. It works! 3 of 4 agree.")
    ['We try, e.g. by hand.', 'It works!', '3 of 4 agree.']
    """
    return END.split(text.strip())


def _measure(split: Split, predicted: Predicted) -> dict[str, float]:
    best = _chosen(predicted.labels, split.labels >= 0)
    found = split.targets[np.arange(len(best)), best].mean(0, dtype=np.float64)
    return {name: float(x) for name, x in zip(ROUGE, found, strict=True)}


def _chosen(expected: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Which of the sentences [n, A] that are there most is expected of: int [n], from [n, A, 3]."""
    return np.where(there, expected[..., -1], -np.inf).argmax(1)


def _prepare(config: Config, data) -> Prepared:
    said = _steps.Told(config.broken)
    columns = _steps.Columns((ABSTRACT, SUMMARY), read=(ABSTRACT,))
    frames = clean(config, DATASET, joined(data, ABSTRACT, SUMMARY), columns, said)
    tokenizer = _tokens.train(config, frames["train"][ABSTRACT].tolist())
    arrays = {}
    for split, frame in frames.items():
        # One that is a whole text is cut as those are that a person asks about.
        texts = [list(x) if len(x) > 1 else sentences(*x) for x in frame["parts"]]
        rows = _rows(config, tokenizer, _normalised(config, texts))
        what = f"{ABSTRACT}: more than {config.length} tokens or {config.sentences} sentences"
        said.say("length", split, what, frame.index[rows.cut])
        labels = np.full(rows.at.shape, UNLABELLED, np.int32)
        targets = np.zeros((*rows.at.shape, len(ROUGE)), np.float32)
        for i, (text, references) in enumerate(zip(texts, frame["references"], strict=True)):
            n = rows.counts[i]
            labels[i, :n] = 0
            targets[i, :n] = _metrics.rouge_of_each(text[:n], [list(references)] * n)
        fields = {"inputs": rows.ids, "key_valid": rows.key_valid, "token_types": rows.types}
        fields |= {"at": rows.at, "labels": labels, "targets": targets}
        arrays |= {f"{split}/{name}": x for name, x in fields.items()}
    test = frames["test"]
    first = first_words(test[ABSTRACT], frames["train"][SUMMARY])
    lead = _metrics.rouge(first, [list(x) for x in test["references"]])
    files = {_tokens.FILE: tokenizer.to_str(), LEAD: json.dumps(lead)}
    return Prepared(arrays, files, {"prepared": said.lines})


def _normalised(config: Config, texts: Sequence[Sequence[str]]) -> list[list[str]]:
    """Sentences as the steps leave them."""
    every = iter(_steps.normalise([x for text in texts for x in text], config.steps))
    return [[next(every) for _ in text] for text in texts]


def _rows(config: Config, tokenizer, texts: Sequence[Sequence[str]]) -> Rows:
    pieces = iter(_tokens.ids(tokenizer, [x for text in texts for x in text]))
    start, between = (tokenizer.token_to_id(x) for x in (_tokens.START, _tokens.SEPARATOR))
    shape = len(texts), config.length
    ids = np.full(shape, tokenizer.token_to_id(_tokens.PAD), np.int32)
    valid, types = np.zeros(shape, bool), np.zeros(shape, np.int32)
    at, counts, cut = np.zeros((len(texts), config.sentences), np.int32), [], []
    for row, text in enumerate(texts):
        line, kinds, places = [], [], []
        for number, own in enumerate([next(pieces) for _ in text]):
            places.append(len(line))
            line += [between if number else start, *own]
            kinds += [number % 2] * (1 + len(own))
        n = min(len(line), config.length)
        ids[row, :n], types[row, :n], valid[row, :n] = line[:n], kinds[:n], True
        kept = [place for place in places[: config.sentences] if place < n]
        at[row, : len(kept)] = kept
        counts.append(len(kept))
        if len(kept) < len(places) or n < len(line):
            cut.append(row)
    return Rows(ids, valid, types, at, np.array(counts), np.array(cut, np.int64))
