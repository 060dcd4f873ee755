"""W = W0 + Σ_k c_k D_k ⊙ V_k: a base that is never trained, and elementwise products that are.

D is the "inverse variable" of the Beats write-up: a factor that gradient descent learns together with V,
folded into one matrix for inference. Named neighbours are diff pruning, theta0 + z ⊙ w, and Hadamard
factorisation; `presets` writes these and others of the family in a line.

Source: the Beats-weights write-up; Guo et al. 2021, "Diff pruning", https://arxiv.org/abs/2012.07463,
  equation 2; Kolb et al. 2025, https://arxiv.org/abs/2502.02496, for what weight decay on both does.
Differs: any number of products, of factors of any kind; W0 may come from a seed or be zero.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.affine import Factored
from tinyattn.weights import _factors, _layers, _theta
from tinyattn.weights._factors import Factor, LowRank
from tinyattn.weights._masks import HardConcrete, sparse
from tinyattn.weights._scheme import Scheme

ONES, ZEROS = Factor(kind="row", value=1.0), Factor(kind="full")
BASES = ("init", "seed", "zero")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Product:
    """c D ⊙ V.

    Attributes:
      d: The factor D, which counts in units of 1: 1 for each output unless said otherwise.
      v: The factor V, which counts in units of the root mean square of the leaf: 0 unless said otherwise.
      scale: c, which is not trained.
    """

    d: Factor = ONES
    v: Factor = ZEROS
    scale: float = 1.0

    def __post_init__(self):
        for name in ("d", "v"):
            object.__setattr__(self, name, _factors.section(Factor, getattr(self, name)))
        if not self.scale:
            raise ValueError("delta: scale=0 leaves nothing of the product: give another number")
        if self.d.kind == self.v.kind == "tied":
            raise ValueError(
                "delta: D and V are both tied to a base, so nothing is trained: tie one"
            )
        if self.d.starts_at_zero and self.v.starts_at_zero:
            raise ValueError(
                "delta: D = V = 0 is a saddle point, the gradient of each factor is the other one"
                " and neither can ever move: give one a value or std other than 0"
            )
        for name, own, other in (("D", self.d, "V"), ("V", self.v, "D")):
            if own.starts_at_zero and not own.moves:
                raise ValueError(
                    f"delta: {name} = 0 is never trained, so {other} has no gradient: give it a value"
                    f" or std, or train it"
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are reparameterised.
      w0: `init`, what the model has then, fresh or pretrained, stored; `seed`, uniform numbers of the same
        root mean square, regenerated; or `zero`.
      products: What is added to it, `Product`s or mappings of their fields; () leaves W0 as it is.
      layers: Regular expression whose one group is the number of a layer in a path.
    """

    leaves: str = "kernel$"
    w0: str = "init"
    products: tuple[Product, ...] = (Product(),)
    layers: str = _layers.PATTERN

    def __post_init__(self):
        if self.w0 not in BASES:
            raise ValueError(
                f"delta: w0={self.w0!r} is unknown; {registry.nearest(self.w0, BASES)}"
            )
        if not self.products and self.w0 == "zero":
            raise ValueError("delta: products=() and w0='zero' leave nothing: give one of them")
        products = tuple(_factors.section(Product, product) for product in self.products)
        object.__setattr__(self, "products", products)
        tied = any(factor.kind == "tied" for p in products for factor in (p.d, p.v))
        if tied and self.w0 == "zero":
            raise ValueError(
                "delta: a factor is tied to W0, but w0='zero' has none: give another w0"
            )
        _layers.check("delta", self.layers)


# What the conformance suite runs.
CASES = (
    {},
    {"w0": "seed", "products": ({"d": {"kind": "col", "value": 1.0}},)},
    {
        "products": (
            {"v": {"kind": "lowrank", "rank": 2, "std": 0.5}, "scale": 0.5},
            {"d": {"kind": "scalar", "value": 1.0}, "v": {"kind": "hashed", "size": 5}},
        )
    },
    {"products": ({"d": {"kind": "row"}, "v": {"kind": "tied"}},)},
    {
        "products": (
            {
                "d": {"kind": "scalar", "value": 1.0, "role": "fixed"},
                "v": {"kind": "sparse", "density": 0.3},
            },
        )
    },
    {
        "w0": "zero",
        "products": (
            {"d": {"kind": "rank1", "value": 1.0}, "v": {"own": True, "scope": "layers"}},
            {
                "d": {"kind": "const"},
                "v": {"kind": "atoms", "size": 2, "std": 0.3, "scope": "layers"},
            },
        ),
    },
    {
        "w0": "zero",
        "products": (
            {
                "d": {"kind": "mask", "std": 1.0, "density": 0.5},
                "v": {"role": "seeded", "std": 1.0},
            },
        ),
    },
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Term(_theta.Node):
    """scale * d ⊙ v, each an array, a node or None for 1."""

    d: Any
    v: Any
    scale: float = _theta.static()

    def build(self, fold):
        parts = [fold(x) for x in (self.d, self.v) if x is not None]
        # A mask that is not learned is of bools.
        kind = jnp.result_type(*(x for x in parts if x.dtype != bool)) if parts else float
        parts = [jnp.asarray(x).astype(kind) for x in parts]
        scale = [] if self.scale == 1.0 else [jnp.asarray(self.scale, kind)]
        return math.prod([*parts, *scale][1:], start=[*parts, *scale][0])

    def reference(self, fold):
        product = np.asarray(self.scale)
        for x in (self.d, self.v):
            if x is not None:
                product = product * fold(x)
        return product


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delta(_theta.Node):
    """What replaces a leaf: w0 + the sum of its terms.

    Attributes:
      w0: The base; None is zero.
      terms: Of `Term`.
      shape: Of the leaf.
    """

    w0: Any
    terms: tuple[Term, ...]
    shape: tuple[int, ...] = _theta.static()

    def build(self, fold):
        parts = [fold(x) for x in (self.w0, *self.terms) if x is not None]
        return jnp.broadcast_to(sum(parts[1:], parts[0]), self.shape)

    def reference(self, fold):
        parts = [np.broadcast_to(fold(term), self.shape) for term in self.terms]
        return sum(parts, np.zeros(self.shape) if self.w0 is None else fold(self.w0))

    def factored(self, fold, resolve):
        """Where nothing needs a gradient of a whole matrix, and what replaces it costs less."""
        if len(self.shape) != 2 or (self.w0 is not None and _trains(resolve(self.w0), resolve)):
            return None
        base = None if self.w0 is None else resolve(self.w0)
        gains, pairs = [], []
        for term in self.terms:
            d, v = (None if x is None else resolve(x) for x in (term.d, term.v))
            d, v = (v, d) if isinstance(d, LowRank) or (base is not None and d is base) else (d, v)
            if not _diagonal(d, fold):
                return None
            scale = term.scale if d is None else fold(d) * term.scale
            if base is not None and v is base:
                gains.append(scale)
            elif isinstance(v, LowRank):
                pairs.append(_pair(v, scale, fold))
            else:
                return None
        sides = {jnp.shape(g) for g in gains} - {()}
        # A gain of inputs and one of outputs add up to no product of the two.
        if len(sides) > 1:
            return None
        d_in, d_out = self.shape
        ranks = sum(a.shape[1] for a, _ in pairs)
        if not self.terms or base is None or 3 * ranks * (d_in + d_out) >= d_in * d_out:
            return None
        gain = sum(gains, 1.0) if gains else None
        column = gain is not None and jnp.shape(gain) == (d_in, 1)
        if gain is not None and not column:
            gain = jnp.broadcast_to(gain, (1, d_out))
        array = fold(self.w0)
        return Factored(array, gain if column else None, None if column else gain, tuple(pairs))

    def compact(self, fold):
        return dataclasses.replace(self, terms=tuple(map(_compact, self.terms)))


def _trains(x, resolve) -> bool:
    """Whether any array in a node is trained."""
    found = [resolve(leaf) for leaf in _theta.leaves(x).values()]
    return any(not _theta.is_kind(leaf) for leaf in found)


def _diagonal(d, fold) -> bool:
    """Whether a factor is one number, or one for each input or output."""
    if d is None:
        return True
    if isinstance(d, _theta.Node) and not _theta.is_kind(d):
        return False
    shape = jnp.shape(fold(d))
    return len(shape) == 0 or (len(shape) == 2 and 1 in shape)


def _pair(v: LowRank, scale, fold):
    """(a, b) whose product is scale ⊙ v."""
    a, b = fold(v.a), fold(v.b)
    if v.middle is not None:
        a = a * fold(v.middle)
    if jnp.shape(scale) == (a.shape[0], 1):
        return a * scale, b
    return a, b * scale


def _compact(term: Term) -> Term:
    """A product with a mask is stored as the elements that the mask leaves."""
    d, v = (term.d, term.v) if isinstance(term.d, _theta.Fixed) else (term.v, term.d)
    if not isinstance(d, _theta.Fixed) or not hasattr(_theta.value(v), "dtype"):
        return term
    if (
        isinstance(v, _theta.Seeded)
        or np.ndim(d.value) == 0
        or d.value.shape != _theta.value(v).shape
    ):
        return term
    if d.value.dtype == bool:
        return Term(None, sparse(np.asarray(_theta.value(v)), d.value), term.scale)
    if (d.value == 0).any():
        return Term(None, sparse(d.value * _theta.value(v), d.value != 0), term.scale)
    return term


def make(config: Config) -> Scheme:
    """Reparameterises the leaves that `config.leaves` picks; the others stay as they are."""

    def init(rng, theta):
        layers = _layers.Layers(config.layers, _theta.leaves(theta))
        owners: dict[tuple, str] = {}
        return _theta.replace_leaves(
            theta,
            {
                path: _split(config, rng, _factors.Leaf(path, leaf, layers), owners)
                for path, leaf in _theta.trained("delta", config.leaves, theta).items()
            },
        )

    def update(theta, step):
        return _theta.map_nodes(
            lambda path, x: x.redrawn(step) if isinstance(x, HardConcrete) else x, theta
        )

    drawn = any(f.estimator == "hard_concrete" for p in config.products for f in (p.d, p.v))
    return Scheme(init, update) if drawn else Scheme(init)


def _split(config: Config, rng, leaf: _factors.Leaf, owners) -> Delta:
    path, array = leaf.path, leaf.array
    rng = _factors.rng_of(rng, path)
    rms = float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
    terms = []
    for k, product in enumerate(config.products):
        if not rms and product.v.kind != "const":
            _check_zero(path, product)
        d, v = (
            _factors.make(
                factor,
                leaf,
                f"terms/{k}/{name}",
                unit,
                jax.random.fold_in(rng, 2 * k + (name == "v")),
                owners,
            )
            for name, factor, unit in (("d", product.d, 1.0), ("v", product.v, rms))
        )
        terms.append(Term(d, v, product.scale))
    return Delta(_base(config, rng, leaf, rms), tuple(terms), array.shape)


def _check_zero(path: str, product: Product) -> None:
    """V counts in units of the leaf, so that of a leaf of zeros is zero."""
    if product.v.kind in ("lowrank", "rank1", "mask"):
        return
    if product.d.starts_at_zero or not product.v.moves:
        raise ValueError(
            f"delta: {path} is all zeros and V counts in units of it, so V = 0 and D has no gradient:"
            f" exclude it, or let D start elsewhere and train V"
        )


def _base(config: Config, rng, leaf: _factors.Leaf, rms: float):
    if config.w0 == "zero":
        return None
    if config.w0 == "init":
        return _theta.Fixed(leaf.array)
    if leaf.array.dtype != jnp.float32:
        raise ValueError(f"delta: {leaf.path} has dtype {leaf.array.dtype}; a seeded W0 is float32")
    return _theta.Seeded.make(rng, leaf.array.shape, rms * math.sqrt(3.0))
