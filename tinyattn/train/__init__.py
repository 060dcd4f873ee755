"""Training: a pure step, compiled once a config, and a loop that can be killed at any moment."""

from tinyattn.train._config import removed
from tinyattn.train._costs import Forward, costs, forward
from tinyattn.train._evaluate import evaluate
from tinyattn.train._loop import Outcome, Progress, discard, fit
from tinyattn.train._step import Config, Program, State, Sums, batches, make

__all__ = [
    "Config",
    "Forward",
    "Outcome",
    "Program",
    "Progress",
    "State",
    "Sums",
    "batches",
    "costs",
    "discard",
    "evaluate",
    "fit",
    "forward",
    "make",
    "removed",
]
