"""What is stored and what is used: `params = scheme.build(theta)`.

`theta` is what a device would have to keep, `params` what a Flax model expects. A scheme is a pair of
pure functions between the two, so it works on the params of any Flax model, and `chain` composes them
as optax composes gradient transformations.

A scheme is a module, here or in a fork's own package, that exposes

- `Config`: a frozen keyword-only dataclass that validates itself;
- `make(config) -> Scheme`, whose `init` puts nodes of its own in the place of leaves;
- `CASES`: the fields under which the conformance suite runs it.

A node is a subclass of `Node`: a frozen dataclass and pytree that knows the array it stands for.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from tinyattn import registry
from tinyattn.weights import _presets as presets
from tinyattn.weights._codes import Codes
from tinyattn.weights._file import Contents, load, read, save
from tinyattn.weights._fold import (
    Sizes,
    compact,
    fold,
    layers,
    penalty,
    reference,
    removed,
    settle,
    sizes,
    stored,
)
from tinyattn.weights._scheme import Scheme, chain, identity
from tinyattn.weights._theta import (
    MOVED,
    Alias,
    Fixed,
    Moved,
    Node,
    Scratch,
    Seeded,
    combine,
    leaves,
    matching,
    move,
    moving,
    partition,
    regenerate,
    static,
    strip,
    value,
)

__all__ = [
    "MOVED",
    "Alias",
    "Codes",
    "Contents",
    "Fixed",
    "Moved",
    "Node",
    "Scheme",
    "Scratch",
    "Seeded",
    "Sizes",
    "build",
    "chain",
    "combine",
    "compact",
    "fold",
    "identity",
    "layers",
    "leaves",
    "load",
    "matching",
    "module",
    "move",
    "moving",
    "names",
    "partition",
    "penalty",
    "presets",
    "read",
    "reference",
    "regenerate",
    "removed",
    "save",
    "settle",
    "sizes",
    "spec",
    "static",
    "stored",
    "strip",
    "value",
]


def names() -> tuple[str, ...]:
    """The schemes of this package."""
    return registry.names(__name__)


def module(name: str):
    """The module of a scheme, by file name or by dotted name from anywhere."""
    return registry.load(__name__, name)


def spec(name: str, **fields: Any) -> registry.Spec:
    """A config section for a scheme: `spec("delta", w0="seed")`."""
    return registry.spec(__name__, name, **fields)


def build(sections: Iterable[Mapping[str, Any]]) -> Scheme:
    """The chain of schemes that a config lists; none is the model's own params."""
    parts = [registry.build(__name__, section) for section in sections]
    return chain(*(part.make(config) for part, config in parts))
