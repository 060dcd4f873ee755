"""W = W0 + D ⊙ V: a base that is never trained, and an elementwise product that is.

D is the "inverse variable" of the Beats write-up: a factor that gradient descent learns together with V,
folded into one matrix for inference. Named neighbours are diff pruning, theta0 + z ⊙ w, and Hadamard
factorisation.

Source: the Beats-weights write-up; Guo et al. 2021, "Diff pruning", https://arxiv.org/abs/2012.07463,
  equation 2; Kolb et al. 2025, https://arxiv.org/abs/2502.02496, for what weight decay on both does.
Differs: D has any of four shapes and is not relaxed towards {0, 1}; W0 may come from a seed.
"""

import dataclasses
import zlib

import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import registry
from tinyattn.weights import _theta
from tinyattn.weights._scheme import Scheme, keep

FACTORS = ("scalar", "row", "col", "full")
BASES = ("init", "seed")
CASES = (
    {},
    {"d": "col", "v": "full", "w0": "seed"},
    {"d": "full", "v": "row"},
    {"d": "scalar", "train_d": False, "w0": "seed", "v_init": 0.5},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """
    Attributes:
      leaves: Regular expression on paths: which leaves are reparameterised.
      w0: `init`, the model's own initial values, stored; or `seed`, uniform numbers of the same root
        mean square, regenerated.
      d: Shape of D: `scalar` (one number), `row` (one row: a number for each output), `col` (one
        column: a number for each input) or `full`. The first axis of a kernel is its input.
      v: Shape of V, likewise.
      d_init: Initial value of D, everywhere.
      v_init: Standard deviation of V's initial values in units of the leaf's own; 0 is V = 0.
      train_d: Whether D is trained.
      train_v: Whether V is trained.
    """

    leaves: str = "kernel$"
    w0: str = "init"
    d: str = "row"
    v: str = "full"
    d_init: float = 1.0
    v_init: float = 0.0
    train_d: bool = True
    train_v: bool = True

    def __post_init__(self):
        for field, chosen, valid in (
            ("w0", self.w0, BASES),
            ("d", self.d, FACTORS),
            ("v", self.v, FACTORS),
        ):
            if chosen not in valid:
                raise ValueError(
                    f"delta: {field}={chosen!r} is unknown; {registry.nearest(chosen, valid)}"
                )
        if self.v_init < 0:
            raise ValueError(f"delta: v_init={self.v_init} is a standard deviation: give 0 or more")
        if self.d_init == 0 and self.v_init == 0:
            raise ValueError(
                "delta: D = V = 0 is a saddle point, the gradient of each factor is the other one"
                " and neither can ever move: give d_init or v_init another value than 0"
            )
        if self.d_init == 0 and not self.train_d:
            raise ValueError("delta: D = 0 is frozen, so V has no gradient: give d_init or train_d")
        if self.v_init == 0 and not self.train_v:
            raise ValueError("delta: V = 0 is frozen, so D has no gradient: give v_init or train_v")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delta:
    """What replaces a leaf of params in theta.

    Attributes:
      w0: The base.
      d: One factor.
      v: The other.
      leaves: The pattern of the scheme that made it, which alone folds it.
    """

    w0: _theta.Fixed | _theta.Seeded
    d: jax.Array | _theta.Fixed
    v: jax.Array | _theta.Fixed
    leaves: str = dataclasses.field(metadata={"static": True})


def factor_shape(factor: str, shape: tuple[int, ...]) -> tuple[int, ...]:
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
    }[factor]


def make(config: Config) -> Scheme:
    """Reparameterises the leaves that `config.leaves` picks; the others stay as they are."""

    def init(rng, theta):
        stored = _theta.leaves(theta)
        picked = {
            path: stored[path]
            for path in _theta.matching(config.leaves, theta)
            if not isinstance(stored[path], _theta.Alias)
        }
        if not picked:
            raise ValueError(
                f"delta: all that {config.leaves!r} picks are aliases of shared leaves: pick owners"
            )
        return _theta.replace_leaves(
            theta, {path: _split(config, rng, path, leaf) for path, leaf in picked.items()}
        )

    def build(theta):
        def fold(x):
            if not _made_by(config, x):
                return x
            return _theta.value(x.w0) + _theta.value(x.d) * _theta.value(x.v)

        return jax.tree.map(fold, theta, is_leaf=lambda x: _made_by(config, x) or _theta.is_kind(x))

    return Scheme(init, build, keep)


def _made_by(config: Config, x) -> bool:
    return isinstance(x, Delta) and x.leaves == config.leaves


def _split(config: Config, rng, path: str, leaf) -> Delta:
    if _theta.is_kind(leaf):
        raise ValueError(f"delta: {path} is {type(leaf).__name__.lower()}, not trained: exclude it")
    shapes = {config.d, config.v} & {"row", "col"}
    if leaf.ndim < 2 and shapes:
        raise ValueError(
            f"delta: {path} has shape {leaf.shape}, which has no rows and columns: pick matrices by"
            f" 'leaves', or make both factors scalar or full"
        )
    rng = jax.random.fold_in(rng, zlib.crc32(path.encode()) & 0x7FFFFFFF)
    rms = float(np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64)))))
    if config.v_init and not rms and (config.d_init == 0 or not config.train_v):
        raise ValueError(
            f"delta: {path} is all zeros and v_init={config.v_init} counts in units of it, so V = 0"
            f" and D has no gradient: exclude it, or give d_init and train_v"
        )
    if config.w0 == "seed":
        # A uniform distribution within +-a has a root mean square of a / sqrt(3).
        w0 = _theta.Seeded.draw(_raw(rng), leaf.shape, rms * np.sqrt(3.0))
        if leaf.dtype != jnp.float32:
            raise ValueError(f"delta: {path} has dtype {leaf.dtype}; a seeded W0 is float32")
    else:
        w0 = _theta.Fixed(leaf)
    d = jnp.full(factor_shape(config.d, leaf.shape), config.d_init, leaf.dtype)
    v = jnp.zeros(factor_shape(config.v, leaf.shape), leaf.dtype)
    if config.v_init:
        v = rms * config.v_init * jax.random.normal(jax.random.fold_in(rng, 1), v.shape, v.dtype)
    return Delta(
        w0,
        d if config.train_d else _theta.Fixed(d),
        v if config.train_v else _theta.Fixed(v),
        config.leaves,
    )


def _raw(rng) -> np.ndarray:
    """Two words that pick a seed, from a raw or a typed key."""
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(rng) if typed else rng)[-2:]


def reference(config: Config, theta):
    """One number at a time, in NumPy."""

    def fold(x):
        if not _made_by(config, x):
            return x
        w0, d, v = (np.asarray(_theta.value(part)) for part in (x.w0, x.d, x.v))
        out = np.empty_like(w0)
        for index in np.ndindex(w0.shape):
            pick = [
                factor[tuple(i if n > 1 else 0 for i, n in zip(index, factor.shape, strict=False))]
                for factor in (d, v)
            ]
            out[index] = w0[index] + pick[0] * pick[1]
        return out

    return jax.tree.map(fold, theta, is_leaf=lambda x: _made_by(config, x) or _theta.is_kind(x))
