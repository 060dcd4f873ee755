"""Intents of requests to an assistant: 150, and what is out of scope of all of them.

Source: Larson et al. 2019, "An evaluation dataset for intent classification and out-of-scope prediction",
  https://arxiv.org/abs/1909.02027; on the hub clinc/clinc_oos, config `plus`, which has 250 out-of-scope
  requests to train on.
Differs: accuracy is over all 151 classes, as the hub's users have it; the paper's two numbers are
  `in_scope_accuracy` and `oos_recall`.
"""

import dataclasses

from tinyattn.tasks import Source, Split, Task, _metrics
from tinyattn.tasks._asked import classify as asked
from tinyattn.tasks._labelled import Labelled, classify
from tinyattn.tasks._metrics import Predicted
from tinyattn.tasks._steps import Columns

__all__ = ["Config", "asked", "load"]

DATASET, NAME = "clinc/clinc_oos", "plus"
TEXT, LABEL = "text", "intent"
OUT_OF_SCOPE = "oos"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """Only the fields of all tasks of labelled texts."""


def load(config: Config, source: Source) -> Task:
    """The requests in memory."""
    data = source.read(DATASET, NAME, ("train", "validation", "test"), (TEXT, LABEL))
    names = data.names(LABEL)
    if OUT_OF_SCOPE not in names:
        raise ValueError(f"{DATASET}: no class of {LABEL!r} is called {OUT_OF_SCOPE!r}: {names}")
    oos = names.index(OUT_OF_SCOPE)

    def measure(split: Split, predicted: Predicted) -> dict[str, float]:
        inside = (split.labels >= 0) & (split.labels != oos)
        return {
            "macro_f1": _metrics.macro_f1(split.labels, predicted.labels),
            "in_scope_accuracy": float((split.labels == predicted.labels)[inside].mean()),
            "oos_recall": _metrics.recall(split.labels, predicted.labels, oos),
        }

    columns = Columns((TEXT,), LABEL, len(names))
    return classify(config, DATASET, data, columns, names=names, measure=measure)
