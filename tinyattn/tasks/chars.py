"""The next character of Shakespeare's plays.

Source: Karpathy 2015, "The unreasonable effectiveness of recurrent neural networks",
  https://karpathy.github.io/2015/05/21/rnn-effectiveness/; on the hub karpathy/tiny_shakespeare, 90 / 5 / 5
  by characters.
Differs: nanoGPT's validation split is the last tenth: its loss compares with the mean of `validation_loss`
  and `test_loss`, whose splits are equally long. Training rows stand side by side, not at any place. The
  vocabulary is of the training split, and five special tokens.
"""

import dataclasses

from tinyattn.tasks import Source, Task
from tinyattn.tasks._language import Language, asked, language
from tinyattn.tasks._metrics import LOSS

__all__ = ["Config", "asked", "load"]

DATASET = "karpathy/tiny_shakespeare"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Language):
    """Only the fields of all language models."""

    tokenizer: str = "char"
    vocab_size: int = 70
    length: int = 64


def load(config: Config, source: Source) -> Task:
    """The plays in memory."""
    return language(config, DATASET, "", source, line_ends=False, metric=LOSS)
