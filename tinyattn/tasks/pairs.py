"""Pairs of sentences: paraphrase, entailment, whether one answers the other; GLUE's tasks of this kind.

Source: Wang et al. 2018, "GLUE", https://arxiv.org/abs/1804.07461; on the hub nyu-mll/glue.
Differs: GLUE's test labels are not public, so its validation split is the test split here (for MNLI the
  matched one), and a tenth of training, stratified and always the same, is the validation split. STS-B is a
  regression and not among them.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence

from tinyattn import registry
from tinyattn.tasks import Asked, Metric, Source, Split, Task, _asked, _metrics
from tinyattn.tasks._labelled import Labelled, classify
from tinyattn.tasks._metrics import ACCURACY, Predicted
from tinyattn.tasks._steps import Columns

DATASET = "nyu-mll/glue"
LABEL = "label"
# The two texts' columns, and the split whose labels are public.
TASKS = {
    "mnli": ("premise", "hypothesis", "validation_matched"),
    "mrpc": ("sentence1", "sentence2", "validation"),
    "qnli": ("question", "sentence", "validation"),
    "qqp": ("question1", "question2", "validation"),
    "rte": ("sentence1", "sentence2", "validation"),
    "wnli": ("sentence1", "sentence2", "validation"),
}
F1 = ("mrpc", "qqp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Labelled):
    """
    Attributes:
      task: `mnli`, `mrpc`, `qnli`, `qqp`, `rte` or `wnli`.
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
    return Asked(split, _asked.classes(json.loads(files[_asked.CLASSES])))


def load(config: Config, source: Source) -> Task:
    """The pairs in memory: `[CLS] first [SEP] second`, token types 0 and 1."""
    first, second, test = TASKS[config.task]
    data = source.read(DATASET, config.task, ("train", test), (first, second, LABEL))
    data = data.renamed(**{test: "test"})
    names = data.names(LABEL)

    def measure(split: Split, predicted: Predicted) -> dict[str, float]:
        if config.task not in F1:
            return {}
        return {"f1": _metrics.f1(split.labels, predicted.labels)}

    return classify(
        config,
        f"{DATASET}, {config.task}",
        data,
        Columns((first, second), LABEL, len(names)),
        validation=-(-len(data["train"]) // 10),
        names=names,
        measure=measure,
        metric=Metric("f1") if config.task in F1 else ACCURACY,
    )
