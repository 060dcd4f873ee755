"""Slots of requests to a voice assistant: which words name an artist, a city, a time, as BIO tags.

Source: Coucke et al. 2018, "Snips voice platform", https://arxiv.org/abs/1805.10190; the split of Goo et
  al. 2018, "Slot-gated modeling for joint slot filling and intent prediction",
  https://aclanthology.org/N18-2118/, whose score is the F1 of whole spans.
Differs: a word is tagged at its first token. The hub has no set of this split, see `snips`. Spans are
  seqeval's: an I- tag without its B- starts one, as in CoNLL-2000's script.
"""

import collections
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from tinyattn.tasks import Asked, Metric, Source, Split, Task, _asked, _metrics, _steps, _tokens
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._metrics import Predicted
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

DATASET = "snips"
TEXT, SLOTS = "text", "slots"
OUTSIDE = "O"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Texts):
    """Only the fields of all tasks of texts; a word's parts help where the word is new."""

    tokenizer: str = "wordpiece"
    vocab_size: int = 4000
    length: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.tokenizer not in ("word", "wordpiece", "bpe"):
            raise ValueError(
                f"task.tokenizer={self.tokenizer!r} does not know words; tags are theirs"
            )
        if self.token_swap:
            raise ValueError(f"task.token_swap={self.token_swap} would part words from their tags")


def load(config: Config, source: Source) -> Task:
    """The requests in memory, a tag a word."""
    data = source.read(DATASET, "", SPLITS, (TEXT, SLOTS))
    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, lambda: _prepare(config, data))
    parts, names = splits(found), tuple(found.told["tags"])

    def measure(split: Split, predicted: Predicted) -> dict[str, float]:
        return _metrics.spans(names, split.labels, predicted.labels)

    return Task(
        **parts,
        num_classes=len(names),
        vocab_size=size(found),
        augment=augmentation(config),
        metric=Metric("span_f1"),
        measure=measure,
        baselines=lambda: measure(parts["test"], most_frequent(parts["train"], parts["test"])),
        files={**found.files, _asked.CLASSES: json.dumps(names)},
        told={"dataset": DATASET, "fingerprint": fingerprint, **found.told},
    )


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Requests whose words get tags."""
    rows, names = _asked.texts(config, files, lines), json.loads(files[_asked.CLASSES])
    first = (rows.words >= 0) & (rows.words != np.roll(rows.words, 1, axis=1))

    def answers(logits: np.ndarray) -> list[dict[str, Any]]:
        found = []
        for line, best, here in zip(lines, logits.argmax(-1), first, strict=True):
            tags = [names[i] for i in best[here]]
            found.append({"words": line.split(), "answer": tags})
        return found

    return Asked(_asked.unlabelled(rows.ids, rows.key_valid), answers)


def _prepare(config: Config, data) -> Prepared:
    said = _steps.Told(config.broken)
    frames = clean(config, DATASET, data, _steps.Columns((TEXT,)), said)
    for split, frame in frames.items():
        pairs = zip(frame[TEXT], frame[SLOTS], strict=True)
        bad = np.array([not _aligned(*pair) for pair in pairs], bool)
        said.drop(frames, "slots", split, "not a BIO tag for each word", bad)
    tags = {split: [line.split() for line in frames[split][SLOTS]] for split in SPLITS}
    every = {tag for split in SPLITS for line in tags[split] for tag in line} - {OUTSIDE}
    names = [OUTSIDE, *sorted(every)]
    ids = {tag: i for i, tag in enumerate(names)}
    tokenizer = _tokens.train(config, frames["train"][TEXT].tolist())
    arrays = {}
    for split in SPLITS:
        rows = _tokens.encode(tokenizer, frames[split][TEXT].tolist(), length=config.length)
        said.cut(split, config.length, frames[split].index[rows.cut])
        first = (rows.words >= 0) & (rows.words != np.roll(rows.words, 1, axis=1))
        labels = np.full(rows.ids.shape, UNLABELLED, np.int32)
        for i, line in enumerate(tags[split]):
            labels[i, first[i]] = [ids[line[word]] for word in rows.words[i, first[i]]]
        fields = {"inputs": rows.ids, "key_valid": rows.key_valid}
        arrays |= named(split, fields, labels, config.pack)
    told = {"prepared": said.lines, "tags": names}
    return Prepared(arrays, {_tokens.FILE: tokenizer.to_str()}, told)


def _aligned(text: str, slots: str | None) -> bool:
    tags = slots.split() if isinstance(slots, str) else []
    known = all(tag == OUTSIDE or tag[:2] in ("B-", "I-") for tag in tags)
    return known and len(tags) == len(text.split())


def most_frequent(train: Split, test: Split) -> Predicted:
    """What tags words get that are those most frequent for each in training, `O` for new words."""
    counts: dict[Sequence[int], collections.Counter[int]] = collections.defaultdict(
        collections.Counter
    )
    for place, word in words(train):
        counts[word][int(train.labels[place])] += 1
    labels = np.full_like(test.labels, UNLABELLED)
    for place, word in words(test):
        # Of equally frequent ones the first of the names.
        tags = counts.get(word, {0: 1})
        labels[place] = min(tags, key=lambda tag, tags=tags: (-tags[tag], tag))
    return Predicted(labels, np.zeros(0, np.float32))


def words(split: Split) -> Iterator[tuple[tuple[int, int], tuple[int, ...]]]:
    """The place of each word's first token, and the ids of its tokens."""
    special = len(_tokens.SPECIALS)
    for row in range(len(split.labels)):
        ids, labels = split.inputs[row], split.labels[row]
        # A word ends where the next starts, or a special token stands that is not for unknown text.
        unknown = _tokens.SPECIALS.index(_tokens.UNKNOWN)
        stops = (labels >= 0) | ((ids < special) & (ids != unknown))
        ends = np.append(np.flatnonzero(stops), len(ids))
        for start in np.flatnonzero(labels >= 0):
            end = ends[np.searchsorted(ends, start, side="right")]
            yield (row, int(start)), tuple(ids[start:end].tolist())
