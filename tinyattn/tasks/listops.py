"""ListOps: nested lists of digits under MIN, MAX, MED (the median, rounded down) and SM (sum modulo 10).

    tokens  [MAX 2 9 [MIN 4 7 ] 0 ]
    label   9

An expression is drawn from its root: above the greatest depth it is an operator with probability 1/4, with
2 to 10 arguments, and else a digit. Those are kept whose number of tokens lies between two bounds.

Source: Nangia & Bowman 2018, https://arxiv.org/abs/1804.06028; sizes of Tay et al. 2020, "Long Range
  Arena", https://arxiv.org/abs/2011.04006, section 2.2.1, and their code,
  https://github.com/google-research/long-range-arena, lra_benchmarks/data/listops.py and
  lra_benchmarks/listops/input_pipeline.py (no round brackets; of longer texts the first tokens).
Differs: other random numbers, so other examples of the same distribution; the token ids.
"""

import dataclasses
import statistics
from collections.abc import Iterator

import numpy as np

from tinyattn.tasks import Split, Task
from tinyattn.tasks._generated import SPLITS, Generated, stream

__all__ = ["Config", "load"]

OPERATORS = ("MIN", "MAX", "MED", "SM")
# 0 is padding, digits follow, then operators with their bracket, and the closing bracket.
DIGITS, OPENING, END = 1, 11, 15
VOCABULARY = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Generated):
    """
    Attributes:
      depth: Greatest depth of an expression.
      arguments: Most arguments of an operator.
      shortest: An example has more tokens than this.
      longest: And fewer than this (T).
    """

    depth: int = 10
    arguments: int = 10
    shortest: int = 500
    longest: int = 2000
    train_examples: int = 96_000
    validation_examples: int = 2_000
    test_examples: int = 2_000

    def __post_init__(self):
        super().__post_init__()
        self.at_least(depth=1, arguments=2, shortest=0, longest=self.shortest + 2)
        if self.shortest >= (most := _most_tokens(self.depth, self.arguments, self.longest)):
            raise ValueError(
                f"shortest={self.shortest}, but an expression of depth={self.depth} and"
                f" arguments={self.arguments} has at most {most} tokens"
            )


def _most_tokens(depth: int, arguments: int, enough: int) -> int:
    """Of an expression of this depth; no more than `enough` is told apart."""
    tokens = 1
    for _ in range(depth - 1):
        tokens = min(2 + arguments * tokens, enough)
    return tokens


def evaluate(operator: str, values: list[int]) -> int:
    """The digit that a list stands for."""
    match operator:
        case "MIN":
            return min(values)
        case "MAX":
            return max(values)
        case "MED":
            return int(statistics.median(values))
    return sum(values) % 10


class _TooLong(Exception):
    """An expression is past its bound, and of no use."""


def _expression(config: Config, numbers: Iterator[int], depth: int, tokens: list[int]) -> int:
    """Appends the tokens of a random expression and returns its value."""
    if len(tokens) >= config.longest:
        raise _TooLong
    if depth == config.depth or next(numbers) % 4:
        digit = next(numbers) % 10
        tokens.append(DIGITS + digit)
        return digit
    operator = next(numbers) % len(OPERATORS)
    tokens.append(OPENING + operator)
    count = 2 + next(numbers) % (config.arguments - 1)
    values = [_expression(config, numbers, depth + 1, tokens) for _ in range(count)]
    tokens.append(END)
    return evaluate(OPERATORS[operator], values)


def _numbers(bits: np.random.Philox) -> Iterator[int]:
    while True:
        yield from bits.random_raw(4096).tolist()


def examples(config: Config, split: str, taken: set[bytes]) -> tuple[list[bytes], list[int]]:
    """Tokens, a byte each, and values of a split: none of `taken`, which they join."""
    numbers = _numbers(stream(config, split))
    texts, values = [], []
    while len(texts) < getattr(config, f"{split}_examples"):
        tokens: list[int] = []
        try:
            value = _expression(config, numbers, 1, tokens)
        except _TooLong:
            continue
        text = bytes(tokens)
        if config.shortest < len(text) < config.longest and text not in taken:
            taken.add(text)
            texts.append(text)
            values.append(value)
    return texts, values


def load(config: Config) -> Task:
    """The splits in memory, padded to one length; no example is in two of them."""
    taken: set[bytes] = set()

    def split(name):
        texts, values = examples(config, name, taken)
        tokens = np.zeros((len(texts), config.longest - 1), np.int32)
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = np.frombuffer(text, np.uint8)
        return Split(tokens, np.asarray(values, np.int32), key_valid=tokens > 0)

    # What is tested is drawn first, so that it does not depend on how much is trained on.
    made = {name: split(name) for name in reversed(SPLITS)}
    return Task(**made, num_classes=10, vocab_size=VOCABULARY, augment=lambda rng, batch: batch)
