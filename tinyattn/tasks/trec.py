"""Question types: what kind of answer a question asks for, six classes.

Source: Li & Roth 2002, "Learning question classifiers", https://aclanthology.org/C02-1150/; on the hub
  CogComp/trec, whose coarse labels these are.
Differs: 500 training questions, stratified and always the same, are the validation split; questions that
  stand twice, or in the test split too, are taken out of training (`task.steps`).
"""

import dataclasses

from tinyattn.tasks import Source, Task
from tinyattn.tasks._asked import classify as asked
from tinyattn.tasks._labelled import Labelled, classify
from tinyattn.tasks._steps import Columns

__all__ = ["Config", "asked", "load"]

DATASET = "CogComp/trec"
TEXT, LABEL = "text", "coarse_label"
VALIDATION = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """Only the fields of all tasks of labelled texts."""


def load(config: Config, source: Source) -> Task:
    """The questions in memory."""
    data = source.read(DATASET, "", ("train", "test"), (TEXT, LABEL))
    names = data.names(LABEL)
    columns = Columns((TEXT,), LABEL, len(names))
    return classify(config, DATASET, data, columns, validation=VALIDATION, names=names)
