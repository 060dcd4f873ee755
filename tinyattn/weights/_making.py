"""How the factors of a product are made, each for its leaf or once for all that have it in common."""

import math
import zlib
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tinyattn.weights import _masks
from tinyattn.weights._factors import Factor
from tinyattn.weights._layers import Layers
from tinyattn.weights._matrices import Atoms, Hashed, LowRank
from tinyattn.weights._theta import Alias, Fixed, Node, Seeded


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
