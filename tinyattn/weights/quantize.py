"""Weights of few bits: trained through an estimator of their gradient, stored as whole numbers and scales.

A weight is q s, a whole number times a scale that it shares with others. `int8`, `int4` and `int2` round
w / s, where s takes the largest |w| to the largest number; `ternary` rounds it to -1, 0 or 1, where s is
the mean of |w|; `binary` is the sign of w times that mean. With a zero point, q is counted from the
smallest weight. The gradient of a weight is taken for that of what it was rounded from (straight-through):
no integer is out of range, but for a learned scale, where that gradient is zero. A leaf that is never
trained, such as W0 of a `delta`, is quantised once.

A file keeps 8, 4, 2, 1.6 (five ternary digits a byte) or 1 bits a weight, and float32 scales. Layers that
share weights but not a learned scale have them stored as they are trained.

Source: Jacob et al. 2018, https://arxiv.org/abs/1712.05877, sections 2.1 and 3 (integers, zero point);
  Ma et al. 2024, "The era of 1-bit LLMs" (BitNet b1.58), https://arxiv.org/abs/2402.17764, section 2
  (ternary); Rastegari et al. 2016, "XNOR-Net", https://arxiv.org/abs/1603.05279, section 3.1 (binary);
  Esser et al. 2020, "LSQ", https://arxiv.org/abs/1902.08153, section 2 (`learned`).
Differs: weights only, no activations; a scale that is not learned gets no gradient; integers without a zero
  point are symmetric and leave one of their numbers unused, as learned ones do not; the sign of 0 is +; the
  gradient of `binary` is not cut at |w| = 1.
"""

import dataclasses

import jax.numpy as jnp

from tinyattn import registry
from tinyattn.weights import _quantized, _theta
from tinyattn.weights._quantized import LEVELS, FakeQuant, Packed
from tinyattn.weights._scheme import Scheme

SCOPES = ("tensor", "output", "group")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are quantised.
      kind: One of `LEVELS`.
      per: What has a scale: the whole `tensor`, each `output`, or each output for a `group` of inputs.
      group: Inputs of a group; it divides those of every leaf.
      zero_point: Whether integers are counted from the smallest weight, not from zero.
      learned: Whether scales are trained, by LSQ's rule.
    """

    leaves: str = "kernel$"
    kind: str = "int8"
    per: str = "output"
    group: int = 0
    zero_point: bool = False
    learned: bool = False

    def __post_init__(self):
        for name, valid in (("kind", LEVELS), ("per", SCOPES)):
            chosen = getattr(self, name)
            if chosen not in valid:
                near = registry.nearest(chosen, valid)
                raise ValueError(f"quantize: {name}={chosen!r} is unknown; {near}")
        if (self.per == "group") != (self.group > 0):
            raise ValueError(
                f"quantize: per={self.per!r} with group={self.group}: give 1 or more inputs a group"
                f" with per='group', and 0 otherwise"
            )
        if self.zero_point and not self.kind.startswith("int"):
            raise ValueError(f"quantize: {self.kind!r} is about zero: set zero_point=False")
        if self.learned and (self.zero_point or self.kind == "binary"):
            raise ValueError(
                f"quantize: no scale of kind={self.kind!r} with zero_point={self.zero_point} can be"
                f" learned: it can for symmetric integers and ternary weights"
            )


CASES = (
    {},
    {"kind": "int4", "per": "tensor", "zero_point": True},
    {"kind": "int4", "per": "group", "group": 2, "leaves": "/attention/.*kernel$"},
    {"kind": "ternary"},
    {"kind": "ternary", "per": "tensor", "learned": True},
    {"kind": "binary", "leaves": "block.*kernel$"},
    {"kind": "int2", "learned": True},
)


def make(config: Config) -> Scheme:
    """Rounds the leaves that `config.leaves` picks; trained ones while they are trained, others once."""

    def init(rng, theta):
        found = _theta.owned("quantize", config.leaves, theta)
        new = {path: _quantised(config, path, leaf) for path, leaf in found.items()}
        return _theta.replace_leaves(theta, new)

    return Scheme(init)


def _quantised(config: Config, path: str, leaf) -> FakeQuant | Packed:
    array, fixed = _theta.value(leaf), isinstance(leaf, _theta.Fixed)
    known = isinstance(leaf, _theta.Seeded | _theta.Scratch)
    if known or not jnp.issubdtype(array.dtype, jnp.floating):
        kind = type(leaf).__name__ if _theta.is_kind(leaf) else array.dtype
        raise ValueError(f"quantize: {path} is {kind}, no stored weights: exclude it")
    groups = {"tensor": 0, "output": 1, "group": 1}[config.per]
    if groups and array.ndim < 2:
        raise ValueError(
            f"quantize: {path} has shape {array.shape}, which has no outputs: pick matrices by"
            f" 'leaves', or set per='tensor'"
        )
    if config.group:
        groups, left = divmod(array.shape[0], config.group)
        if left:
            raise ValueError(
                f"quantize: group={config.group} must divide the {array.shape[0]} inputs of {path}"
            )
    if fixed and config.learned:
        raise ValueError(f"quantize: {path} is never trained: set learned=False for it")
    if fixed:
        return _quantized.packed(array, config.kind, groups, config.zero_point)
    scale = _quantized.first_scale(array, config.kind, groups) if config.learned else None
    return FakeQuant(array, scale, config.kind, groups, config.zero_point)
