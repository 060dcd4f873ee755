"""Pruning: a mask that sets weights to zero, of single weights, N of M, blocks, heads or FFN columns.

A pruned weight keeps its value without a gradient, so it may come back while masks are still remade;
after `end` they stay. Heads and FFN columns are masked alike in all leaves of a layer, and equally many in
each layer; `weights.removed` takes them out of params, for a smaller model of the same kind. Single
weights, N of M and blocks save bytes and no FLOP: a file has the values that are kept and a bit a unit.
After another scheme prune one of its leaves (`kernel/terms/0/v`); before it, let it have `kernel/weight`.

Source: Zhu and Gupta 2017, "To prune, or not to prune", https://arxiv.org/abs/1710.01878, equation 1, for
  the schedule and magnitudes; Sanh et al. 2020, "Movement pruning", https://arxiv.org/abs/2005.07683,
  section 4, for trained scores; Mishra et al. 2021, https://arxiv.org/abs/2104.08378, section 3, for 2 of
  4; Lagunas et al. 2021, "Block pruning", https://arxiv.org/abs/2109.04838, for one score a block.
Differs: shares count within a leaf, not over the model. Movement's mask is remade at the schedule's steps
  and not at each, so it stays after `end`, and scores have the learning rate and decay of all matrices. A
  block's magnitude is its L2 norm, a head's the product of those of its values' and outputs' kernels, a
  column's that of what it reads and of what it writes. N of M is stored as M bits a group, which a number
  for each possible pattern would undercut.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tinyattn import registry
from tinyattn.weights import _layers, _picks, _pruned, _theta
from tinyattn.weights._scheme import Scheme

SCORES = ("magnitude", "movement", "random")
PATTERNS = ("unstructured", "n:m", "blocks", "heads", "ffn")
_COLUMNS = {
    "pattern": "ffn",
    "outputs": r"(up|\d/attention)/kernel$",
    "inputs": r"((up|\d/attention)/bias|down/kernel)$",
    "judges": "kernel$",
}
_SQUARE = r"(up|\d/attention)/kernel$"
CASES = (
    {"sparsity": 0.3},
    {"pattern": "n:m", "leaves": _SQUARE, "score": "movement", "begin": 20, "end": 40, "every": 10},
    {"pattern": "blocks", "leaves": _SQUARE, "rows": 2, "score": "random"},
    _COLUMNS,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are pruned; heads and FFN columns have `outputs`.
      score: What is kept: the largest `magnitude`s, the largest scores that training finds (`movement`,
        from 0), or `random` ones.
      pattern: `unstructured`, `n:m` (`keep` of `of` consecutive inputs of an output), `blocks`, `heads`
        (of self-attention) or `ffn`. The last two expect the leaves of `tinyattn.model`; `outputs`,
        `inputs` and `judges` say those of other models, and of cross-attention.
      sparsity: Share that is zero in the end; N of M has 1 - keep / of. Heads and columns round it.
      keep: N of N of M.
      of: M.
      rows: Inputs of a block.
      columns: Outputs of a block.
      units: Heads that are pruned one by one: the model's key/value heads, each with its queries; of FFN
        columns 0 is all.
      outputs: Regular expression: kernels whose outputs belong to units; "" is our model's.
      inputs: Regular expression: leaves whose first axis does, biases among them; "" is our model's.
      judges: Regular expression: leaves whose norms count; "" is our model's.
      layers: Regular expression whose one group is the number of a layer in a path.
      begin: Step at which gradual pruning begins.
      end: Step from which the sparsity is reached and masks stay; 0 prunes once, before training.
      every: Steps from one mask to the next, a divisor of end - begin.
    """

    leaves: str = "kernel$"
    score: str = "magnitude"
    pattern: str = "unstructured"
    sparsity: float = 0.5
    keep: int = 2
    of: int = 4
    rows: int = 4
    columns: int = 4
    units: int = 0
    outputs: str = ""
    inputs: str = ""
    judges: str = ""
    layers: str = _layers.PATTERN
    begin: int = 0
    end: int = 0
    every: int = 1

    def __post_init__(self):
        for field, valid in (("score", SCORES), ("pattern", PATTERNS)):
            chosen = getattr(self, field)
            if chosen not in valid:
                raise ValueError(f"prune: {field}={chosen!r}; {registry.nearest(chosen, valid)}")
        if not 0 <= self.sparsity < 1:
            raise ValueError(f"prune: sparsity={self.sparsity} must be a share in [0, 1)")
        if min(self.rows, self.columns, self.every) < 1 or self.units < 0:
            raise ValueError(
                f"prune: rows={self.rows}, columns={self.columns} and every={self.every} must be at"
                f" least 1, and units={self.units} 0 or more"
            )
        if not 0 <= self.begin <= self.end or (self.end - self.begin) % self.every:
            raise ValueError(
                f"prune: every={self.every} must divide the steps from begin={self.begin} to"
                f" end={self.end}, which is not before it"
            )
        if self.score == "movement" and not self.end:
            raise ValueError(
                "prune: score='movement' is learned and says nothing at first: give an end above 0"
            )
        if self.pattern == "n:m" and not 0 < self.keep < self.of:
            raise ValueError(f"prune: keep={self.keep} must be in 1..{self.of - 1}, of={self.of}")
        if self.pattern == "n:m" and abs(self.sparsity - (1 - self.keep / self.of)) > 1e-6:
            raise ValueError(
                f"prune: keep={self.keep} of={self.of} is another share than"
                f" sparsity={self.sparsity}: give sparsity={1 - self.keep / self.of:g}"
            )
        if self.pattern == "heads" and not self.units:
            raise ValueError("prune: heads need units, the model's number of key/value heads")
        for field in ("leaves", "outputs", "inputs", "judges"):
            _layers.regular("prune", field, getattr(self, field))
        _layers.check("prune", self.layers)


def zeros(config: Config, final: int, step) -> jax.Array:
    """How many of `final` zeros the schedule has at a step, int32.

    >>> [int(zeros(Config(begin=10, end=30, every=10), 80, step)) for step in (9, 19, 20, 29, 30)]
    [0, 0, 70, 70, 80]
    """
    begun = jnp.clip(step, config.begin, config.end) - config.begin
    left = 1 - begun // config.every * config.every / max(config.end - config.begin, 1)
    gradual = jnp.round(final * (1 - left**3)).astype(jnp.int32)
    return jnp.where(step >= config.end, final, gradual)


def make(config: Config) -> Scheme:
    """Puts masks on the leaves that are picked, and remakes them by the schedule; the others stay."""

    def remade(theta, step):
        scores = _pruned.scored(theta)
        return {
            path: _pruned.best(scores(path, mask), zeros(config, mask.zeros, step))
            for path, mask in _pruned.masks(config, theta).items()
        }

    def put(theta, kept):
        new = {f"{path}/kept": _theta.Fixed(at) for path, at in kept.items()}
        return _theta.replace_leaves(theta, new)

    def init(rng, theta):
        pick = _picks.whole if config.pattern in _picks.LEAVES else _picks.elements
        theta = _theta.replace_leaves(theta, pick(config, rng, theta))
        return theta if config.end else put(theta, remade(theta, 0))

    def update(theta, step):
        masks = _pruned.masks(config, theta)
        if not masks:
            return theta
        on = (step >= config.begin) & (step <= config.end)
        due = on & ((step - config.begin) % config.every == 0)
        for mask in masks.values():
            # Also where a mask is not as it should be by now, as when steps were left out.
            pruned = jnp.sum(~mask.kept.value, axis=-1)
            due |= jnp.any(pruned != zeros(config, mask.zeros, step))
        before = {path: jnp.asarray(mask.kept.value) for path, mask in masks.items()}
        return put(theta, jax.lax.cond(due, lambda: remade(theta, step), lambda: before))

    return Scheme(init, update) if config.end else Scheme(init)
