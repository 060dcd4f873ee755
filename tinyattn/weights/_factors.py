"""The factors D and V of a product: what they may be, how they start, and the nodes that hold them."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.weights import _masks
from tinyattn.weights._layers import Layers
from tinyattn.weights._theta import Alias, Fixed, Node, Seeded, static

KINDS = {
    "const": "the number 1",
    "scalar": "one number",
    "row": "a number for each output",
    "col": "a number for each input",
    "rank1": "a column times a row",
    "lowrank": "a matrix of rank `rank` at most",
    "full": "a number for each weight",
    "mask": "zeros and ones, some of them learned",
    "sparse": "numbers at some places, and zero elsewhere",
    "hashed": "numbers of one pool, each at many places and with either sign",
    "atoms": "a mixture of `size` matrices",
    "tied": "the base W0 of this leaf or of another layer",
}
ROLES = ("trainable", "fixed", "seeded")
SCOPES = ("leaf", "layers", "model")
SEEDED = ("scalar", "row", "col", "rank1", "lowrank", "full", "mask", "hashed", "atoms")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Factor:
    """One of the two factors of a product; D counts in units of 1, V in those of the leaf.

    Attributes:
      kind: One of `KINDS`.
      role: `trainable`, `fixed` (stored and never trained) or `seeded` (regenerated, never stored). Of a
        low rank with a `middle`, of a pool and of atoms it says how the matrices are kept; the middle,
        or the mixture's weights, are trained. The places of a sparse factor or of a pool are seeded.
      value: What it is at first, everywhere.
      std: Standard deviation of what is added to it at first.
      own: Whether a full factor starts as the leaf itself.
      rank: Of a low rank (R).
      middle: Whether a low rank is A diag(m) B, where m is trained and starts at `middle_value`.
      middle_value: Where m starts.
      size: Numbers of a pool, or matrices of a mixture.
      density: Share of ones in a mask that is drawn, of places of a sparse factor, or of the ones that a
        learned mask keeps; 0 lets it keep all that score above 0.
      estimator: How a learned mask gets a gradient, one of `_masks.ESTIMATORS`.
      cost: What each expected one of a hard-concrete mask adds to the loss.
      scope: Who has it in common: `leaf` is nobody, `layers` the same leaf of all layers of a group,
        `model` all leaves of one shape. Where it is kept in parts, see `role`, it is the matrices.
      groups: Groups of consecutive layers that have it in common, with the scope `layers`.
      layer: Whose W0 a tied factor is; -1 is the leaf's own.
    """

    kind: str = "full"
    role: str = "trainable"
    value: float = 0.0
    std: float = 0.0
    own: bool = False
    rank: int = 1
    middle: bool = False
    middle_value: float = 0.1
    size: int = 0
    density: float = 0.0
    estimator: str = "straight_through"
    cost: float = 0.0
    scope: str = "leaf"
    groups: int = 1
    layer: int = -1

    def __post_init__(self):
        for field, valid in (
            ("kind", KINDS),
            ("role", ROLES),
            ("scope", SCOPES),
            ("estimator", _masks.ESTIMATORS),
        ):
            chosen = getattr(self, field)
            if chosen not in valid:
                raise ValueError(f"delta: {field}={chosen!r}; {registry.nearest(chosen, valid)}")
        if self.std < 0:
            raise ValueError(f"delta: std={self.std} is a standard deviation: give 0 or more")
        if min(self.rank, self.groups) < 1:
            raise ValueError(f"delta: rank={self.rank} and groups={self.groups} must be at least 1")
        if self.kind in ("hashed", "atoms") and self.size < 1:
            raise ValueError(f"delta: {self.kind!r} has size={self.size} numbers; give 1 or more")
        if not 0 <= self.density <= 1:
            raise ValueError(f"delta: density={self.density} must be a share in [0, 1]")
        drawn = self.kind == "sparse" or (self.kind == "mask" and self.role != "trainable")
        if drawn and not self.density:
            raise ValueError(f"delta: {self.kind!r} is drawn and needs a density above 0")
        if self.role == "seeded" and self.kind not in SEEDED:
            raise ValueError(f"delta: {self.kind!r} cannot be seeded; these can: {list(SEEDED)}")
        whole = self.kind in ("mask", "lowrank", "rank1")
        if self.role == "seeded" and not whole and (self.value or not self.std):
            raise ValueError(
                f"delta: a seeded factor is of random numbers about 0, with value={self.value} and"
                f" std={self.std}: give value=0 and a std above 0"
            )
        if self.own and self.kind != "full":
            raise ValueError(
                f"delta: only a full factor starts as the leaf itself, not {self.kind!r}"
            )

    @property
    def moves(self) -> bool:
        """Whether training changes it."""
        return (self.role == "trainable" and self.kind not in ("const", "tied")) or (
            self.kind == "atoms" or (self.kind == "lowrank" and self.middle)
        )

    @property
    def starts_at_zero(self) -> bool:
        """Whether it is zero at first; a leaf that is zero itself apart."""
        if self.kind in ("const", "mask", "tied") or self.own:
            return False
        if self.kind in ("lowrank", "rank1") and self.role == "seeded":
            return self.middle and not self.middle_value
        return not self.value and not self.std


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRank(Node):
    """a [d_in, R] times b [R, d_out], with `middle` [R] between them where it has one."""

    a: Any
    middle: Any
    b: Any
    shape: tuple[int, ...] = static()

    def build(self, fold):
        a = fold(self.a)
        if self.middle is not None:
            a = a * fold(self.middle)
        return (a @ fold(self.b)).reshape(self.shape)

    def reference(self, fold):
        a, b = fold(self.a), fold(self.b)
        middle = np.ones(a.shape[1]) if self.middle is None else fold(self.middle)
        return sum(m * np.outer(a[:, r], b[r]) for r, m in enumerate(middle)).reshape(self.shape)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Atoms(Node):
    """Σ_s weights[s] atoms[s]."""

    weights: Any
    atoms: Any

    def build(self, fold):
        return jnp.tensordot(fold(self.weights), fold(self.atoms), 1)

    def reference(self, fold):
        return sum(w * atom for w, atom in zip(fold(self.weights), fold(self.atoms), strict=True))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hashed(Node):
    """Numbers of a pool: slot s is pool[|s| - 1] with the sign of s."""

    pool: Any
    slots: Any

    def build(self, fold):
        pool, slots = fold(self.pool), fold(self.slots)
        return pool[jnp.abs(slots) - 1] * jnp.sign(slots).astype(pool.dtype)

    def reference(self, fold):
        pool, slots = fold(self.pool), fold(self.slots)
        return np.array([np.sign(s) * pool[abs(s) - 1] for s in slots.ravel()]).reshape(slots.shape)


class Leaf(NamedTuple):
    """What a factor is made for: a leaf of theta, its own values, and the layers that paths name."""

    path: str
    array: jax.Array
    layers: Layers


def make(factor: Factor, leaf: Leaf, name: str, unit: float, rng, owners: dict[tuple, str]):
    """The array or node of a factor, or the alias of one that was made before; None is the number 1.

    Args:
      factor: What is asked for.
      leaf: For which leaf.
      name: Of the factor within it, such as `terms/0/d`.
      unit: What `value` and `std` count in.
      rng: Of this leaf and factor.
      owners: Where what was made in common is; this call adds to it.

    Raises:
      ValueError: The leaf cannot have such a factor.
    """
    shape, dtype = leaf.array.shape, leaf.array.dtype
    if factor.kind == "const":
        return None
    if factor.kind == "tied":
        return Alias(f"{_other(factor, leaf)}/w0")
    if len(shape) < 2 and factor.kind in ("row", "col", "lowrank", "rank1"):
        raise ValueError(
            f"delta: {leaf.path} has shape {shape}, which has no rows and columns: pick matrices by"
            f" 'leaves', or make both factors scalar or full"
        )

    def common(part, made):
        """What `made` makes, once for all who have it in common."""
        if factor.scope == "leaf":
            return made()
        who = _who(factor, leaf) + (name, part, shape)
        if who in owners:
            return Alias(owners[who])
        owners[who] = "/".join(filter(None, (leaf.path, name, part)))
        return made()

    def array(shape, value, std, salt=0):
        own = jax.random.fold_in(rng, salt)
        if factor.role == "seeded":
            if dtype != jnp.float32:
                raise ValueError(f"delta: {leaf.path} has dtype {dtype}; a seeded array is float32")
            # A uniform distribution within +-a has a root mean square of a / sqrt(3).
            return Seeded.make(own, shape, std * math.sqrt(3.0))
        made = jnp.full(shape, value, dtype)
        if std:
            made += std * jax.random.normal(own, shape, dtype)
        return made if factor.role == "trainable" else Fixed(made)

    value, std = factor.value * unit, factor.std * unit
    places = jax.random.fold_in(rng, 3)
    match factor.kind:
        case "full" if factor.own:
            own = leaf.array if factor.role == "trainable" else Fixed(leaf.array)
            return common("", lambda: own)
        case "scalar" | "row" | "col" | "full":
            return common("", lambda: array(factor_shape(factor.kind, shape), value, std))
        case "mask" if factor.role == "trainable":
            return common("", lambda: _masks.learned(factor, shape, dtype, rng))
        case "mask":
            drawn = Seeded.make(places, shape, _count(factor, shape), "mask")
            seeded = factor.role == "seeded"
            return common("", lambda: drawn if seeded else Fixed(jnp.asarray(drawn.value)))
        case "sparse":
            count = _count(factor, shape)
            at = Seeded.make(places, shape, count, "mask")
            return common("", lambda: _masks.Sparse(array((count,), value, std), at))
        case "hashed":
            slots = Seeded.make(places, shape, factor.size, "slots")
            return Hashed(common("pool", lambda: array((factor.size,), value, std)), slots)
        case "atoms":
            # Of length 1, so that the mixture has the standard deviation of one atom.
            weights = jax.random.normal(places, (factor.size,), dtype)
            weights /= jnp.linalg.norm(weights)
            return Atoms(weights, common("atoms", lambda: array((factor.size, *shape), value, std)))
        case "rank1" | "lowrank":
            return _low_rank(factor, leaf, value, std, array, common)


def _low_rank(factor: Factor, leaf: Leaf, value, std, array, common) -> Node:
    shape, R = leaf.array.shape, 1 if factor.kind == "rank1" else factor.rank
    d_in, d_out = shape[0], math.prod(shape[1:])
    # With a middle, more are more numbers to train.
    if R > min(d_in, d_out) and not factor.middle:
        raise ValueError(
            f"delta: rank={R} of {leaf.path}, {d_in} by {d_out}, can be at most {min(d_in, d_out)}"
        )
    # As PyTorch starts a layer, or so that a sum of R products has the variance that is asked for.
    usual = {"a": (3 * d_in) ** -0.5, "b": (3 * R) ** -0.5 if factor.role == "seeded" else 0.0}
    each = dict.fromkeys("ab", (std**2 / R) ** 0.25) if std or value else usual

    def matrix(part):
        side = {"a": (d_in, R), "b": (R, d_out)}[part]
        made = array(side, 0.0, each[part], "ab".index(part) + 1)
        if not value:
            return made
        ones = (jnp.arange(R) == 0).reshape((1, R) if part == "a" else (R, 1))
        return jax.tree.map(
            lambda x: x + (value if part == "b" else 1) * ones.astype(x.dtype), made
        )

    if factor.middle:
        middle = jnp.full(R, factor.middle_value, leaf.array.dtype)
        a, b = (common(part, lambda part=part: matrix(part)) for part in "ab")
        return LowRank(a, middle, b, shape)
    return common("", lambda: LowRank(matrix("a"), None, matrix("b"), shape))


def _count(factor: Factor, shape) -> int:
    return max(1, round(factor.density * math.prod(shape)))


def _who(factor: Factor, leaf: Leaf) -> tuple:
    """What those have in common who share a factor."""
    number = leaf.layers.of(leaf.path)
    if factor.scope == "model":
        return ()
    if number is None:
        return (leaf.path,)
    first = leaf.layers.owners("delta", "groups", factor.groups)[number]
    return (leaf.layers.moved(leaf.path, first),)


def _other(factor: Factor, leaf: Leaf) -> str:
    """The path of the leaf whose base a tied factor is."""
    if factor.layer < 0:
        return leaf.path
    if leaf.layers.of(leaf.path) is None or factor.layer not in leaf.layers.numbers:
        raise ValueError(
            f"delta: {leaf.path} cannot be tied to layer={factor.layer}; the layers are"
            f" {leaf.layers.numbers}"
        )
    return leaf.layers.moved(leaf.path, factor.layer)


def factor_shape(kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of a factor that broadcasts against a leaf whose first axis is its input.

    >>> factor_shape("row", (8, 3)), factor_shape("col", (8, 3))
    ((1, 3), (8, 1))
    """
    ones = (1,) * (len(shape) - 1)
    return {
        "scalar": (),
        "row": (1, *shape[1:]),
        "col": (*shape[:1], *ones),
        "full": shape,
    }[kind]


def rng_of(rng, path: str):
    """The key of a path."""
    return jax.random.fold_in(rng, zlib.crc32(path.encode()) & 0x7FFFFFFF)


def section(config_class: type, given: Any) -> Any:
    """A dataclass from itself, or from a mapping of some of its fields."""
    if isinstance(given, config_class):
        return given
    if not isinstance(given, Mapping) and not hasattr(given, "items"):
        raise ValueError(f"delta: {given!r} is no section of {config_class.__name__}'s fields")
    return config_class(**registry.known(config_class, dict(given.items()), config_class.__name__))
