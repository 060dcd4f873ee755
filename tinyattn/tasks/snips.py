"""Intents of requests to a voice assistant, seven classes.

Source: Coucke et al. 2018, "Snips voice platform", https://arxiv.org/abs/1805.10190; the split of Goo et
  al. 2018, "Slot-gated modeling for joint slot filling and intent prediction",
  https://aclanthology.org/N18-2118/.
Differs: the hub has no set of this split, so its files must be given, with columns text, slots and intent.
  Requests that stand twice, or in a later split too, are taken out of training (`task.steps`).
"""

import dataclasses

from tinyattn.tasks import Source, Split, Task, _metrics
from tinyattn.tasks._asked import classify as asked
from tinyattn.tasks._labelled import Labelled, classify
from tinyattn.tasks._metrics import Predicted
from tinyattn.tasks._steps import SPLITS, Columns

__all__ = ["Config", "asked", "load"]

DATASET = "snips"
TEXT, LABEL = "text", "intent"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """Only the fields of all tasks of labelled texts."""


def load(config: Config, source: Source) -> Task:
    """The requests in memory."""
    data = source.read(DATASET, "", SPLITS, (TEXT, LABEL))
    names = data.names(LABEL)

    def measure(split: Split, predicted: Predicted) -> dict[str, float]:
        return {"macro_f1": _metrics.macro_f1(split.labels, predicted.labels)}

    columns = Columns((TEXT,), LABEL, len(names))
    return classify(config, DATASET, data, columns, names=names, measure=measure)
