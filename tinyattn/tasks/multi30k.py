"""Translation of captions: 29,000 descriptions of photographs, in German and in English.

Source: Elliott et al. 2016, "Multi30K: Multilingual English-German image descriptions",
  https://arxiv.org/abs/1605.00459; on the hub bentrevett/multi30k, whose test split is that of 2016.
Differs: BLEU and chrF are sacreBLEU's, of texts with capitals and of its own tokens, which is lower than
  numbers of lower-case tokens.
"""

import dataclasses

from tinyattn import registry
from tinyattn.tasks import Metric, Source, Task, _metrics
from tinyattn.tasks._sequences import Sequences, answer, asked

__all__ = ["Config", "asked", "load"]

DATASET = "bentrevett/multi30k"
LANGUAGES = ("de", "en")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Sequences):
    """
    Attributes:
      source: The language that is read, `de` or `en`; the other one is written.
    """

    source: str = "de"
    vocab_size: int = 8000
    length: int = 32
    target_length: int = 32

    def __post_init__(self):
        super().__post_init__()
        if self.source not in LANGUAGES:
            raise ValueError(
                f"task.source={self.source!r}; {registry.nearest(self.source, LANGUAGES)}"
            )


def load(config: Config, source: Source) -> Task:
    """The captions in memory."""
    data = source.read(DATASET, "", ("train", "validation", "test"), LANGUAGES)
    target = LANGUAGES[1 - LANGUAGES.index(config.source)]
    metric = Metric("bleu", percent=False)
    return answer(config, DATASET, data, config.source, target, score=_metrics.bleu, metric=metric)
