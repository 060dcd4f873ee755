"""What tasks have in common that answer a text by a text: one vocabulary, a prefix, texts to write."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import datasets
import numpy as np
import pandas as pd

from tinyattn.tasks import (
    Asked,
    Metric,
    Task,
    Writing,
    _asked,
    _metrics,
    _pack,
    _steps,
    _texts,
    _tokens,
)
from tinyattn.tasks._cache import Prepared, prepared
from tinyattn.tasks._source import Dataset

REFERENCES = "references.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sequences(_texts.Texts):
    """
    Attributes:
      target_length: Tokens of an answer at most, that of its end included (P); what is longer is cut off,
        and counted.
      beams: Texts that the search for the test split's answers keeps open; 1 is greedy.
      length_penalty: Alpha of that search: more favours longer texts.
    """

    target_length: int = 32
    beams: int = 1
    length_penalty: float = 0.6
    tokenizer: str = "bpe"
    length: int = 64
    steps: tuple[str, ...] = ("nfkc", "whitespace", "missing", "duplicates", "dedupe")

    def __post_init__(self):
        super().__post_init__()
        if self.target_length < 2:
            raise ValueError(f"task.target_length={self.target_length} must be at least 2")
        if self.beams < 1 or self.length_penalty < 0:
            raise ValueError(
                f"task.beams={self.beams} must be at least 1, and task.length_penalty ="
                f" {self.length_penalty} at least 0"
            )


def answer(
    config: Sequences,
    dataset: str,
    data: Dataset,
    source: str,
    target: str,
    *,
    score: Callable[[Sequence[str], Sequence[Sequence[str]]], dict[str, float]],
    metric: Metric,
    lead: bool = False,
) -> Task:
    """A task of writing the text `target` for the text `source`.

    A column of lists is texts: of the source joined, of the target one after the other, of which the first
    is trained on, and all are references.

    Args:
      config: The task's.
      dataset: Its name, for messages.
      data: Its rows.
      source: Column of what is read.
      target: Column of what is written.
      score: (texts written, references of each) -> the field's numbers.
      metric: Which of them a table shows.
      lead: Whether the first words of the source are what a model has to beat.
    """

    def make() -> Prepared:
        said = _steps.Told(config.broken)
        columns = _steps.Columns((source, target), read=(source,))
        frames = _texts.clean(config, dataset, joined(data, source, target), columns, said)
        train = frames["train"]
        tokenizer = _tokens.train(config, [*train[source], *train[target]])
        end = tokenizer.token_to_id(_tokens.SEPARATOR)
        arrays, lengths = {}, (config.length, config.target_length)
        for split in _steps.SPLITS:  # training first
            pair = [
                _tokens.encode(tokenizer, frames[split][column].tolist(), length=most)
                for column, most in zip((source, target), lengths, strict=True)
            ]
            if split == "train":  # padding to more than it needs would be paid for
                lengths = tuple(int(rows.key_valid.sum(1).max()) for rows in pair)
                pair = [
                    rows._replace(ids=rows.ids[:, :most], key_valid=rows.key_valid[:, :most])
                    for rows, most in zip(pair, lengths, strict=True)
                ]
            for column, rows in zip((source, target), pair, strict=True):
                what = f"{column}: cut off at {rows.ids.shape[1]} tokens"
                said.say("length", split, what, frames[split].index[rows.cut])
            if split == "train" and config.pack:  # tokens that answers take beside those of a row
                total = [int(rows.key_valid.sum()) for rows in pair]
                width = max(-(-config.pack * total[1] // total[0]), lengths[1])
            read, written = (
                {name: rows.ids, "key_valid": rows.key_valid}
                for name, rows in zip(("inputs", "prefix"), pair, strict=True)
            )
            written["labels"] = following(pair[1], end)
            if config.pack and split != "test":
                read, written = _pack.pack_pairs(read, written, config.pack, width)
                written["prefix_segments"] = written.pop("segment_ids")
            del written["key_valid"]  # what is behind an answer is seen by none of its tokens
            arrays |= {f"{split}/{name}": x for name, x in (read | written).items()}
        test = frames["test"]
        kept = {"references": list(map(list, test["references"]))}
        kept["lead"] = first_words(test[source], train[target]) if lead else []
        files = {_tokens.FILE: tokenizer.to_str(), REFERENCES: json.dumps(kept)}
        return Prepared(arrays, files, {"prepared": said.lines})

    fingerprint = data.fingerprint()
    found = prepared(fingerprint, config, make)
    kept = json.loads(found.files[REFERENCES])
    tokenizer = _tokens.Tokenizer.from_str(found.files[_tokens.FILE])
    parts = _texts.splits(found)

    def baselines() -> dict[str, float]:
        return score(kept["lead"], kept["references"]) if lead else {}

    return Task(
        **parts,
        # As many as are asked for, whether or not the texts have them: a model's sizes hang on no data.
        num_classes=config.vocab_size,
        vocab_size=config.vocab_size,
        augment=_texts.augmentation(config),
        metric=_metrics.LOSS,
        measure=lambda split, predicted: _metrics.perplexity(predicted.losses),
        baselines=baselines,
        files={_tokens.FILE: found.files[_tokens.FILE]},
        told={"dataset": dataset, "fingerprint": fingerprint, **found.told},
        writing=_writing(config, tokenizer, parts["test"].prefix.shape[1]),
        judge=lambda answers: score(answers, kept["references"]),
        headline=metric,
    )


def _writing(config: Sequences, tokenizer: _tokens.Tokenizer, length: int) -> Writing:
    return Writing(
        start=tokenizer.token_to_id(_tokens.START),
        end=tokenizer.token_to_id(_tokens.SEPARATOR),
        length=length,
        text=_spelled(tokenizer),
        beams=config.beams,
        alpha=config.length_penalty,
    )


def asked(config: Sequences, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Texts to answer by texts."""
    rows = _asked.texts(config, files, lines)
    tokenizer = _tokens.Tokenizer.from_str(files[_tokens.FILE])
    writing = _writing(config, tokenizer, config.target_length)
    return Asked(_asked.unlabelled(rows.ids, rows.key_valid), writing=writing)


def following(rows: _tokens.Encoded, end: int) -> np.ndarray:
    """int32 [n, P], the token after each of a prefix, `end` after the last; none where it was cut off."""
    labels = np.full(rows.ids.shape, _texts.UNLABELLED, np.int32)
    labels[:, :-1] = np.where(rows.key_valid[:, 1:], rows.ids[:, 1:], _texts.UNLABELLED)
    whole = np.ones(len(labels), bool)
    whole[rows.cut] = False
    labels[whole, rows.key_valid.sum(1)[whole] - 1] = end
    return labels


def joined(data: Dataset, source: str, target: str) -> Dataset:
    """Rows with plain texts in both columns, and in others the `parts` and the `references` of each."""

    def several(x):
        return isinstance(x, list | np.ndarray)

    def all_of(x):
        return [str(y) for y in x] if several(x) else [x]

    def texts(frame: pd.DataFrame) -> pd.DataFrame:
        references = frame[target].map(all_of)
        return pd.DataFrame(
            {
                source: frame[source].map(lambda x: " ".join(all_of(x)) if several(x) else x),
                target: references.map(lambda texts: texts[0] if texts else None),
                "parts": frame[source].map(all_of),
                "references": references,
            }
        )

    frames = {split: texts(frame) for split, frame in data.frames().items()}
    return Dataset({split: datasets.Dataset.from_pandas(x) for split, x in frames.items()})


def first_words(sources: Sequence[str], targets: Sequence[str]) -> list[str]:
    """Of every source the first words, as many as targets have in the median."""
    n = round(float(np.median([len(text.split()) for text in targets])))
    return [" ".join(text.split()[:n]) for text in sources]


def _spelled(tokenizer: _tokens.Tokenizer) -> Callable[[Sequence[int]], str]:
    special = {tokenizer.token_to_id(token) for token in _tokens.SPECIALS}

    def text(ids: Sequence[int]) -> str:
        return tokenizer.decode([int(i) for i in ids if int(i) not in special]).strip()

    return text
