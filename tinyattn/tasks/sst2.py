"""Sentiment of phrases and sentences of film reviews, two classes.

Source: Socher et al. 2013, "Recursive deep models for semantic compositionality over a sentiment
  treebank", https://aclanthology.org/D13-1170/; as GLUE has it, on the hub stanfordnlp/sst2.
Differs: GLUE's test labels are not public, so its validation split is the test split here, and 2,000
  training phrases, stratified and always the same, are the validation split. Other phrases of their
  sentences are trained on, so validation accuracy is above that of the test split's whole sentences.
"""

import dataclasses

from tinyattn.tasks import Source, Task
from tinyattn.tasks._asked import classify as asked
from tinyattn.tasks._labelled import Labelled, classify
from tinyattn.tasks._steps import Columns

__all__ = ["Config", "asked", "load"]

DATASET = "stanfordnlp/sst2"
TEXT, LABEL = "sentence", "label"
VALIDATION = 2000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """Only the fields of all tasks of labelled texts."""


def load(config: Config, source: Source) -> Task:
    """The phrases in memory."""
    data = source.read(DATASET, "", ("train", "validation"), (TEXT, LABEL))
    data = data.renamed(validation="test")
    names = data.names(LABEL)
    columns = Columns((TEXT,), LABEL, len(names))
    return classify(config, DATASET, data, columns, validation=VALIDATION, names=names)
