"""Extractive summaries: which sentence of an abstract says best what the paper is about.

    read      [CLS] many have tried .   [CLS] we propose a parser .   [CLS] it is fast .
    targets   ROUGE of this sentence    of this one                   of this one

An example is a sentence, and its token type tells where in its abstract it stands. Of an abstract that
sentence is the summary of which most is expected: nothing is written, so that a small encoder will do.

Source: Ren et al. 2016, "A redundancy-aware sentence regression framework for extractive summarization",
  https://aclanthology.org/C16-1004/. The data are those of `scitldr`.
Differs: a summary is one sentence, so that none repeats another; the targets are its ROUGE-1, 2 and L, the
  best of several references for each, with their squared errors.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tinyattn.tasks import Asked, Metric, Source, Split, Task, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._metrics import ROUGE, Predicted
from tinyattn.tasks._sequences import first_words, joined
from tinyattn.tasks._texts import Texts, augmentation, clean, size, splits
from tinyattn.tasks.scitldr import ABSTRACT, DATASET, NAME, SUMMARY

LEAD = "lead.json"
# Token types of a sentence: the first ones of a text have one each, those between them and the last share.
FIRST = 3
MIDDLE, LAST = FIRST, FIRST + 1
# A sentence ends before white space and what may begin one.
END = re.compile(r"(?<=[.!?])\s+(?=[\"'(\[]?[A-Z0-9])")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Texts):
    """The fields of all tasks of texts; `length` is of a sentence."""

    tokenizer: str = "wordpiece"
    vocab_size: int = 4000
    length: int = 64

    def __post_init__(self):
        if self.pack:
            raise ValueError(
                f"task.pack={self.pack}: a row is one sentence, which has one output; set it to 0"
            )
        super().__post_init__()


def load(config: Config, source: Source) -> Task:
    """The sentences in memory; the label of each is the number of its abstract."""
    data = source.read(DATASET, NAME, _steps.SPLITS, (ABSTRACT, SUMMARY))
    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, lambda: _prepare(config, data))
    return Task(
        **splits(found),
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
      ValueError: A text is empty, or a sentence has more tokens than the model reads.
    """
    _asked.check_there(lines)
    texts = [sentences(line) for line in lines]
    every, owner = [x for text in texts for x in text], owners(texts)
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    rows = _tokens.encode(tokenizer, _steps.normalise(every, config.steps), length=config.length)
    if len(rows.cut):
        row = rows.cut[0]
        raise ValueError(
            f"line {owner[row] + 1} has a sentence of more than {config.length} tokens, which is what the"
            f" model reads: {every[row][:40]!r}...; cut it in two, or train with more task.length"
        )

    def answers(outputs: np.ndarray) -> list[dict[str, Any]]:
        best = chosen(outputs, owner)
        return [
            {"answer": every[i], f"expected_{ROUGE[-1]}": round(float(outputs[i, -1]), 4)}
            for i in best
        ]

    split = _asked.unlabelled(rows.ids, rows.key_valid)
    return Asked(split._replace(token_types=_types(texts, rows.key_valid)), answers)


def sentences(text: str) -> list[str]:
    """A text cut where sentences seem to end.

    >>> sentences("We try, e.g. by hand. It works! 3 of 4 agree.")
    ['We try, e.g. by hand.', 'It works!', '3 of 4 agree.']
    """
    return END.split(text.strip())


def owners(texts: Sequence[Sequence[str]]) -> np.ndarray:
    """int32, the number of the text that each sentence is of."""
    return np.repeat(np.arange(len(texts), dtype=np.int32), [len(text) for text in texts])


def chosen(expected: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Of every text the sentence of which most is expected, the first of equals.

    Args:
      expected: Of each sentence, [n, 3]; the last counts.
      owner: int [n], its text, in order.
    """
    order = np.lexsort((-expected[:, -1], owner))
    return order[np.flatnonzero(np.diff(owner[order], prepend=-1))]


def _measure(split: Split, predicted: Predicted) -> dict[str, float]:
    found = split.targets[chosen(predicted.labels, split.labels)].mean(0, dtype=np.float64)
    return {name: float(x) for name, x in zip(ROUGE, found, strict=True)}


def _types(texts: Sequence[Sequence[str]], key_valid: np.ndarray) -> np.ndarray:
    """int32 [n, T], where in its text a sentence stands; 0 at padding."""
    places = []
    for text in texts:
        own = np.minimum(np.arange(len(text)), MIDDLE)
        own[-1] = LAST if len(text) > FIRST else own[-1]
        places.append(own)
    return np.concatenate(places)[:, None].astype(np.int32) * key_valid


def _prepare(config: Config, data) -> Prepared:
    said = _steps.Told(config.broken)
    columns = _steps.Columns((ABSTRACT, SUMMARY), read=(ABSTRACT,))
    frames = clean(config, DATASET, joined(data, ABSTRACT, SUMMARY), columns, said)
    tokenizer = _tokens.train(config, frames["train"][ABSTRACT].tolist())
    arrays = {}
    for split, frame in frames.items():
        # One that is a whole text is cut as those are that a person asks about.
        texts = [list(x) if len(x) > 1 else sentences(*x) for x in frame["parts"]]
        every, owner = [x for text in texts for x in text], owners(texts)
        rows = _tokens.encode(
            tokenizer, _steps.normalise(every, config.steps), length=config.length
        )
        what = f"have a sentence of more than {config.length} tokens"
        said.say("length", split, what, frame.index[np.unique(owner[rows.cut])])
        references = [list(frame["references"].iloc[i]) for i in owner]
        fields = {
            "inputs": rows.ids,
            "key_valid": rows.key_valid,
            "token_types": _types(texts, rows.key_valid),
            "labels": owner,
            "targets": _metrics.rouge_of_each(every, references).astype(np.float32),
        }
        arrays |= {f"{split}/{name}": x for name, x in fields.items()}
    test = frames["test"]
    first = first_words(test[ABSTRACT], frames["train"][SUMMARY])
    lead = _metrics.rouge(first, [list(x) for x in test["references"]])
    files = {_tokens.FILE: tokenizer.to_str(), LEAD: json.dumps(lead)}
    return Prepared(arrays, files, {"prepared": said.lines})
