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

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.weights import _factors, _layers, _making, _theta
from tinyattn.weights._delta import Delta, Term
from tinyattn.weights._factors import Factor
from tinyattn.weights._masks import HardConcrete
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


def make(config: Config) -> Scheme:
    """Reparameterises the leaves that `config.leaves` picks; the others stay as they are."""

    def init(rng, theta):
        layers = _layers.Layers(config.layers, _theta.leaves(theta))
        owners: dict[tuple, str] = {}
        return _theta.replace_leaves(
            theta,
            {
                path: _split(config, rng, _making.Leaf(path, leaf, layers), owners)
                for path, leaf in _theta.trained("delta", config.leaves, theta).items()
            },
        )

    def update(theta, step):
        return _theta.map_nodes(
            lambda path, x: x.redrawn(step) if isinstance(x, HardConcrete) else x, theta
        )

    drawn = any(f.estimator == "hard_concrete" for p in config.products for f in (p.d, p.v))
    return Scheme(init, update) if drawn else Scheme(init)


def _split(config: Config, rng, leaf: _making.Leaf, owners) -> Delta:
    path, array = leaf.path, leaf.array
    rng = _making.rng_of(rng, path)
    rms = float(np.sqrt(np.mean(np.square(np.asarray(array, np.float64)))))
    terms = []
    for k, product in enumerate(config.products):
        if not rms and product.v.kind != "const":
            _check_zero(path, product)
        d, v = (
            _making.make(
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


def _base(config: Config, rng, leaf: _making.Leaf, rms: float):
    if config.w0 == "zero":
        return None
    if config.w0 == "init":
        return _theta.Fixed(leaf.array)
    if leaf.array.dtype != jnp.float32:
        raise ValueError(f"delta: {leaf.path} has dtype {leaf.array.dtype}; a seeded W0 is float32")
    return _theta.Seeded.make(rng, leaf.array.shape, rms * math.sqrt(3.0))
