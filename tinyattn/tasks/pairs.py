"""Pairs of sentences: paraphrase, similarity, entailment, whether one answers the other; GLUE's tasks of
this kind.

Source: Wang et al. 2018, "GLUE", https://arxiv.org/abs/1804.07461, table 1; on the hub nyu-mll/glue.
Differs: GLUE's test labels are not public, so its validation split is the test split here (for MNLI the
  matched one, and the mismatched one beside it), and a tenth of training, stratified and always the same,
  is the validation split. The loss of STS-B's score, 0 to 5, is its squared error.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyattn import registry
from tinyattn.tasks import Asked, Metric, Source, Split, Task, _asked, _metrics
from tinyattn.tasks._labelled import Labelled, classify, regress
from tinyattn.tasks._metrics import ACCURACY, Predicted
from tinyattn.tasks._steps import Columns

DATASET = "nyu-mll/glue"
LABEL = "label"
F1 = Metric("f1")


class Pairs(NamedTuple):
    """What one of the tasks is.

    Attributes:
      texts: The two texts' columns.
      public: Splits whose labels are, by the names that they have on the hub, and what they are here.
      metric: What a table shows; None of a score.
    """

    texts: tuple[str, str] = ("sentence1", "sentence2")
    public: Mapping[str, str] = {"validation": "test"}
    metric: Metric | None = ACCURACY


TASKS = {
    "mnli": Pairs(
        ("premise", "hypothesis"),
        {"validation_matched": "test", "validation_mismatched": "mismatched"},
    ),
    "mrpc": Pairs(metric=F1),
    "qnli": Pairs(("question", "sentence")),
    "qqp": Pairs(("question1", "question2"), metric=F1),
    "rte": Pairs(),
    "stsb": Pairs(metric=None),
    "wnli": Pairs(),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """
    Attributes:
      task: `mnli`, `mrpc`, `qnli`, `qqp`, `rte`, `stsb` or `wnli`.
    """

    task: str = "mrpc"
    length: int = 64

    def __post_init__(self):
        super().__post_init__()
        if self.task not in TASKS:
            raise ValueError(f"task.task={self.task!r}; {registry.nearest(self.task, TASKS)}")


def asked(config: Config, files: Mapping[str, str], lines: Sequence[str]) -> Asked:
    """Lines of two texts, a tab between them.

    Raises:
      ValueError: A line has no tab, or several.
    """
    rows = _asked.texts(config, files, *_asked.columns(lines, "two texts"))
    split = _asked.unlabelled(rows.ids, rows.key_valid)._replace(token_types=rows.types)
    if TASKS[config.task].metric is None:
        return Asked(split, _scores)
    return Asked(split, _asked.classes(json.loads(files[_asked.CLASSES])))


def _scores(outputs: np.ndarray) -> list[dict[str, Any]]:
    # Of packed texts that of a text stands at its first token.
    found = outputs[:, 0] if outputs.ndim == 2 else outputs[:, 0, 0]
    return [{"answer": round(float(score), 4)} for score in found]


def load(config: Config, source: Source) -> Task:
    """The pairs in memory: `[CLS] first [SEP] second`, token types 0 and 1."""
    texts, public, metric = TASKS[config.task]
    data = source.read(DATASET, config.task, ("train", *public), (*texts, LABEL))
    data = data.renamed(**public)
    name, held_out = f"{DATASET}, {config.task}", -(-len(data["train"]) // 10)
    if metric is None:
        return regress(config, name, data, Columns(texts, LABEL), validation=held_out)
    names = data.names(LABEL)

    def measure(split: Split, predicted: Predicted) -> dict[str, float]:
        return {"f1": _metrics.f1(split.labels, predicted.labels)} if metric == F1 else {}

    return classify(
        config,
        name,
        data,
        Columns(texts, LABEL, len(names)),
        validation=held_out,
        names=names,
        measure=measure,
        metric=metric,
    )
