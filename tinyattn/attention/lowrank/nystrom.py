"""Nyström attention: the table of weights from a few landmarks, with linear work and memory.

The valid tokens are cut into `landmarks` runs whose means stand for queries and keys. Three softmaxes,
of queries over mean keys, of mean queries over mean keys and of mean queries over keys, are multiplied
with the pseudo-inverse of the second between the others. At as many landmarks as tokens it is dense.

Source: Xiong et al. 2021, "Nyströmformer", https://arxiv.org/abs/2102.03902, equations 13-15 and section
  3.2; the iteration is Razavi et al. 2014, https://doi.org/10.1155/2014/563787.
Differs: runs are cut by the count of valid tokens, the same whatever padding surrounds them; the paper
  wants a length that `landmarks` divides. The pseudo-inverse starts from the norms of its own matrix, as
  in the paper; the authors' code takes the largest of the batch. It is multiplied with the mixed values
  first, which saves 2 T m² a head. No depthwise convolution of the values.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import softmax
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

SUPPORTS = frozenset({"padding"})
SIMULATED = False
COST = "T * landmarks + iterations * landmarks**3 / H"
DENSE_WHEN = {"landmarks": 1 << 20}
CASES = ({"landmarks": 3}, {"landmarks": 4, "num_kv_heads": 2, "iterations": 4})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      landmarks: Runs of tokens whose means stand for all (m).
      iterations: Steps towards the pseudo-inverse; each costs four products of m x m.
    """

    landmarks: int = 64
    iterations: int = 6

    def __post_init__(self):
        super().__post_init__()
        if self.landmarks < 1 or self.iterations < 1:
            raise ValueError(
                f"landmarks={self.landmarks} and iterations={self.iterations} must be at least 1"
            )


def attend(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """The Nyström approximation of dense attention over valid tokens, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T, N, H, m = *(size[axis] for axis in "BTNH"), config.landmarks
    if size["S"] != T:
        raise ValueError(f"landmarks are of one sequence: T={T}, S={size['S']}")
    if m >= T:
        return softmax.attend(query, key, value, mask)
    valid = jnp.ones((B, T), bool) if mask.key_valid is None else mask.key_valid
    valid = jnp.broadcast_to(valid, (B, T))
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    key, value = (jnp.where(valid[..., None, None], x, 0).astype(dtype) for x in (key, value))
    query, like = query.astype(dtype), query.dtype
    runs = _runs(valid, m)
    held = jax.vmap(lambda run: jnp.bincount(run, length=m))(runs)
    mean_query, mean_key = _means(query, runs, held), _means(key, runs, held)

    some = held > 0
    scores = jnp.einsum("blnh,bmnh->bnlm", mean_query, attention.repeat_heads(mean_key, N))
    # An empty run is a row and a column of zeros, which the pseudo-inverse keeps.
    core = _softmax_over(scores / math.sqrt(H), some[:, None, None])
    core = jnp.where(some[:, None, :, None], core, 0)
    far = softmax.attend(mean_query, key, value, mask)
    mixed = jnp.einsum("bnlm,bmnh->blnh", _pseudo_inverse(core, config.iterations), far)
    # Without padding no run is empty. Query heads have values of their own by now, and keys in common.
    full = mask if mask.key_valid is None else masks.padding(some)
    return softmax.attend(query, mean_key, mixed, full).astype(like)


def _runs(valid: jax.Array, m: int) -> jax.Array:
    """The run of each token, [B, T]; m, which is none, where it is not valid."""
    rank = jnp.cumsum(valid, axis=1) - 1
    total = valid.sum(1, keepdims=True)
    return jnp.where(valid, rank * m // jnp.maximum(total, 1), m)


def _means(x: jax.Array, runs: jax.Array, held: jax.Array) -> jax.Array:
    """Means of [B, T, N, H] over each run, [B, m, N, H]; zeros for an empty one."""
    m = held.shape[1]
    # Sums by address, not by a product with a T x m table of ones. What is in no run is dropped.
    sums = jax.vmap(
        lambda x, run: jnp.zeros((m, *x.shape[1:]), x.dtype).at[run].add(x, mode="drop")
    )
    return sums(x, runs) / jnp.maximum(held, 1)[..., None, None]


def _softmax_over(scores: jax.Array, allowed: jax.Array) -> jax.Array:
    """Softmax over what is allowed along the last axis; zeros where that is nothing."""
    shown = jnp.where(allowed, scores, -jnp.inf)
    # A row of minus infinities would be NaN, and so would its gradient.
    weights = jax.nn.softmax(jnp.where(allowed.any(-1, keepdims=True), shown, 0))
    return jnp.where(allowed, weights, 0)


def _pseudo_inverse(matrix: jax.Array, iterations: int) -> jax.Array:
    """Of [..., m, m] with rows that sum to 1 or are zeros, so that only the columns' norm counts."""
    norm = matrix.sum(-2).max(-1)[..., None, None]
    inverse = matrix.swapaxes(-1, -2) / jnp.where(norm > 0, norm, 1)
    eye = jnp.eye(matrix.shape[-1], dtype=matrix.dtype)

    def product(a, b):
        # The error of a reduced precision would grow from step to step.
        return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)

    def step(_, inverse):
        both = product(matrix, inverse)
        inner = 15 * eye - product(both, 7 * eye - both)
        return product(inverse, 13 * eye - product(both, inner)) / 4

    return jax.lax.fori_loop(0, iterations, step, inverse)


@functools.partial(jax.jit, static_argnums=0)
def reference(config: Config, query, key, value, mask: Mask) -> jax.Array:
    """Head by head in float32: means by a table of averages, three softmaxes, all T x S weights."""
    B, T, N, H = query.shape
    if config.landmarks >= T:
        return dense.reference(config, query, key, value, mask)
    allowed = jnp.broadcast_to(mask.dense(T, T).any(1), (B, T))
    runs, one = jnp.arange(config.landmarks)[:, None], jnp.eye(config.landmarks)

    def head(allowed, query, key, value):
        query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
        before = jnp.tril(jnp.ones((T, T), int), -1) @ allowed.astype(int)
        member = allowed & (runs == before * config.landmarks // jnp.maximum(allowed.sum(), 1))
        some = member.any(1)
        average = member / jnp.maximum(member.sum(1), 1)[:, None]
        mean_query, mean_key = average @ query, average @ key

        def weights(a, b, columns):
            scores = jnp.where(columns, a @ b.T / jnp.sqrt(H), -jnp.inf)
            return jax.nn.softmax(jnp.where(columns.any(), scores, 0.0), axis=-1)

        a = weights(mean_query, mean_key, some) * some[:, None] * some
        norms = jnp.linalg.norm(a, 1) * jnp.linalg.norm(a, jnp.inf)
        z = a.T / jnp.where(some.any(), norms, 1.0)
        for _ in range(config.iterations):
            z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
        table = weights(query, mean_key, some) @ z @ weights(mean_query, key, allowed)
        return jnp.where(allowed.any(), table @ value, 0.0)

    heads = jax.vmap(jax.vmap(head, in_axes=(None, 1, 1, 1), out_axes=1))
    key, value = attention.repeat_heads(key, N), attention.repeat_heads(value, N)
    return heads(allowed, query, key, value).astype(query.dtype)


class Attention(attention.Shell):
    """Nyström attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Products with landmarks and of the pseudo-inverse; useful are the valid keys'. FLOPs an example."""
    N, H, m = config.num_heads, config.width(D), config.landmarks
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    if m >= T:
        executed, useful = softmax.pairs(T, S, mask), float(mask.pairs(T, S).mean())
        pairs = attention.Work(2 * N * H * executed, 2 * N * H * useful)
        return {**parts, "scores": pairs, "mix": pairs}
    keys = float(mask.pairs(1, S).mean())

    def work(executed, useful, factor):
        return attention.Work(2 * N * executed * factor, 2 * N * useful * factor)

    near, far = (softmax.pairs(T, m), T * m), (softmax.pairs(m, S, mask), m * keys)
    return {
        **parts,
        "queries to landmarks": work(*near, H),
        "landmarks to landmarks": work(m * m, m * m, H),
        "landmarks to keys": work(*far, H),
        "values to landmarks": work(*far, H),
        "pseudo-inverse": work(4 * config.iterations, 4 * config.iterations, m**3),
        "through the inverse": work(m * m, m * m, H),
        "landmarks to outputs": work(*near, H),
    }
