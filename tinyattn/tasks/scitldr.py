"""Summaries of one sentence: what a paper is about, from its abstract; 1,992 to train on.

Source: Cachola et al. 2020, "TLDR: Extreme summarization of scientific documents",
  https://arxiv.org/abs/2004.15011; on the hub allenai/scitldr, config `Abstract`.
Differs: of several references the first is trained on; ROUGE takes the best of them for each number.
"""

import dataclasses

from tinyattn.tasks import Metric, Source, Task, _metrics
from tinyattn.tasks._sequences import Sequences, answer, asked

__all__ = ["Config", "asked", "load"]

DATASET, NAME = "allenai/scitldr", "Abstract"
ABSTRACT, SUMMARY = "source", "target"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sequences):
    """Only the fields of all tasks that answer a text by a text."""

    length: int = 256
    target_length: int = 48


def load(config: Config, source: Source) -> Task:
    """The abstracts in memory."""
    data = source.read(DATASET, NAME, ("train", "validation", "test"), (ABSTRACT, SUMMARY))
    metric = Metric("rougeL")
    return answer(
        config, DATASET, data, ABSTRACT, SUMMARY, score=_metrics.rouge, metric=metric, lead=True
    )
