"""What is stored and what is used: `params = scheme.build(theta)`.

`theta` is what a device would have to keep, `params` what a Flax model expects. A scheme is a pair of
pure functions between the two, so it works on the params of any Flax model, and `chain` composes them
as optax composes gradient transformations.

A scheme is a module, here or in a fork's own package, that exposes

- `Config`: a frozen keyword-only dataclass that validates itself;
- `make(config) -> Scheme`;
- `reference(config, theta) -> params`: the same as `build`, slow and obvious, in NumPy;
- `CASES`: the fields under which the conformance suite runs it.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tinyattn import registry
from tinyattn.weights._scheme import Scheme, chain, identity
from tinyattn.weights._theta import (
    Alias,
    Fixed,
    Seeded,
    Sizes,
    combine,
    leaves,
    matching,
    partition,
    regenerate,
    sizes,
    strip,
    value,
)

__all__ = [
    "Alias",
    "Fixed",
    "Scheme",
    "Seeded",
    "Sizes",
    "build",
    "chain",
    "combine",
    "identity",
    "leaves",
    "load",
    "matching",
    "names",
    "partition",
    "regenerate",
    "sizes",
    "spec",
    "strip",
    "value",
]


def names() -> tuple[str, ...]:
    """The schemes of this package."""
    return registry.names(__name__)


def load(name: str):
    """The module of a scheme, by file name or by dotted name from anywhere."""
    return registry.load(__name__, name)


def spec(name: str, **fields: Any) -> registry.Spec:
    """A config section for a scheme: `spec("delta", d="row", w0="seed")`."""
    return registry.spec(__name__, name, **fields)


def build(sections: Iterable[Mapping[str, Any]]) -> Scheme:
    """The chain of schemes that a config lists; none is the model's own params."""
    parts = [registry.build(__name__, section) for section in sections]
    return chain(*(module.make(config) for module, config in parts))
