"""Subject lines: the subject of an e-mail from its body, 14,436 to train on.

Source: Zhang & Tetreault 2019, "This email could save your life: Introducing the task of email subject line
  generation", https://arxiv.org/abs/1906.03497; on the hub Yale-LILY/aeslc.
Differs: ROUGE alone, against the one subject that the hub has; bodies are cut off at `task.length` tokens.
"""

import dataclasses

from tinyattn.tasks import Metric, Source, Task, _metrics
from tinyattn.tasks._sequences import Sequences, answer, asked

__all__ = ["Config", "asked", "load"]

DATASET = "Yale-LILY/aeslc"
BODY, SUBJECT = "email_body", "subject_line"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sequences):
    """Only the fields of all tasks that answer a text by a text."""

    length: int = 128
    target_length: int = 16


def load(config: Config, source: Source) -> Task:
    """The e-mails in memory."""
    data = source.read(DATASET, "", ("train", "validation", "test"), (BODY, SUBJECT))
    metric = Metric("rougeL")
    return answer(
        config, DATASET, data, BODY, SUBJECT, score=_metrics.rouge, metric=metric, lead=True
    )
