"""The next word of articles of Wikipedia.

Source: Merity et al. 2016, "Pointer sentinel mixture models", https://arxiv.org/abs/1609.07843; on the hub
  Salesforce/wikitext, config `wikitext-2-v1`, whose rare words are <unk> already.
Differs: a row sees nothing before its first word, so perplexity is above that of a model that slides along
  the text. The baseline is a trigram model of the same words, see `tinyattn.tasks._kneser`.
"""

import dataclasses

import numpy as np

from tinyattn.tasks import Source, Split, Task, _kneser, _metrics
from tinyattn.tasks._language import Language, asked, language
from tinyattn.tasks._metrics import PERPLEXITY

__all__ = ["Config", "asked", "load"]

DATASET, NAME = "Salesforce/wikitext", "wikitext-2-v1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Language):
    """Only the fields of all language models; fewer words make the rest `[UNK]`, which is easier."""

    vocab_size: int = 33_282
    length: int = 64


def load(config: Config, source: Source) -> Task:
    """The articles in memory, a line's words and `[EOS]`."""
    task = language(config, DATASET, NAME, source, line_ends=True, metric=PERPLEXITY)
    return task._replace(baselines=lambda: trigrams(task))


def trigrams(task: Task) -> dict[str, float]:
    """Test numbers of trigrams of the training split."""
    stream, test = (_stream(split) for split in (task.train, task.test))
    before = np.concatenate([[-1], test[:-2]])
    contexts = np.stack([before, test[:-1], test[1:]], axis=1)
    losses = _kneser.loss(stream, contexts, task.vocab_size)
    return {"loss": float(losses.mean()), **_metrics.perplexity(losses)}


def _stream(split: Split) -> np.ndarray:
    """The words of rows that follow each other."""
    labels = split.labels[split.labels >= 0]
    return np.concatenate([split.inputs[0, :1], labels])
