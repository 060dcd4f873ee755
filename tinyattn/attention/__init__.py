"""How tokens mix: one mechanism a file, all with one contract.

A variant is a module, here or in a fork's own package, that exposes

- `Config`: a frozen keyword-only dataclass that validates itself, usually a subclass of `Heads`;
- `attend(config, query, key, value, mask) -> out`: the pure function, over projected heads;
- `reference(config, query, key, value, mask) -> out`: the same, slow and obvious, in float32;
- `Attention`: the Linen module around it, usually an empty subclass of `Shell`;
- `flops(config, mask, *, D, T, S) -> {part: Work}`: what one example costs, in closed form;
- `SUPPORTS`: the kinds of `Mask.kinds` it honours, "cross" if the keys may be of another sequence, and
  "bias" if `attend` and `reference` take `bias`, a `tinyattn.biases.Bias` of the scores;
- `SIMULATED`: True if it only masks a dense product, so that it saves no work;
- `COST`: how the products grow, up to a factor, as an expression of T, H and fields of `Config`;
- `DENSE_WHEN`: the fields at which it must equal `dense`, or None where no such setting exists;
- `CASES`: the fields under which the conformance suite runs it;
- `init_state(config, B, capacity, H, dtype)`, `step(config, state, query, key, value, active)` and
  `state_bytes(config, *, D, length, itemsize)`, where it decodes a token at a time;
- `project(config, inputs, memory, *, rotate, kernel_init) -> query, key, value`, where the heads are not
  made as `attention.project` makes them;
- `extras(config, inputs, memory, *, kernel_init) -> {name: array}`, where `attend`, `reference` and `step`
  take more than heads: gates of the tokens [B, T, ...], or parameters; a step takes those of its token.
  Both are called within a compact module and may declare parameters there; any real number is a legal
  value of an extra;
- `DETACHED`: a frozenset of prefixes of paths, such as "index_key", of the parameters that get no gradient
  through `attend`, because another loss trains them;
- `auxiliary`, of the arguments of `attend`: that loss, float32 [B, T], whose mean over tokens training adds
  to the loss of the task; nothing else computes it;
- `effective(config, mask, T) -> bool [B or 1, T, T]`, where a pattern of its own joins the mask: the pairs
  that count.

Shapes are query [B, T, N, H]; key and value [B, S, K, H] where K divides N; out [B, T, N, H].
"""

from collections.abc import Mapping
from typing import Any

from tinyattn import registry
from tinyattn.attention._heads import (
    Heads,
    Work,
    check,
    check_shapes,
    merge,
    products,
    project,
    projection_flops,
    repeat_heads,
)
from tinyattn.attention._shell import Shell, of_memory, shapes, shares

__all__ = [
    "Heads",
    "Shell",
    "Work",
    "build",
    "check",
    "check_shapes",
    "load",
    "merge",
    "names",
    "of_memory",
    "products",
    "project",
    "projection_flops",
    "repeat_heads",
    "shapes",
    "shares",
    "spec",
]


def names() -> tuple[str, ...]:
    """The variants of this package."""
    return registry.names(__name__)


def load(name: str):
    """The module of a variant, by file name or by dotted name from anywhere."""
    return registry.load(__name__, name)


def spec(name: str, **fields: Any) -> registry.Spec:
    """A config section for a variant: `spec("window", window=16)`."""
    return registry.spec(__name__, name, **fields)


def build(section: Mapping[str, Any]):
    """The module and `Config` of a section."""
    return registry.build(__name__, section)
