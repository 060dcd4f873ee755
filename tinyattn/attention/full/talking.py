"""Talking heads: learned mixtures of the heads' scores before the softmax, of their weights after.

Scores of all heads are needed at once, so queries go in pieces whose scores are computed again in the
backward pass: memory is linear in the length. The module starts from identities, which is dense attention.

Source: Shazeer et al. 2020, "Talking-heads attention", https://arxiv.org/abs/2003.02436, section 3; that a
  bias joins the mixed scores, so that it belongs to a head of the softmax, is the authors' code.
Differs: as many heads of keys, of softmaxes and of values, so both mixtures are square. They start from
  identities, where the authors draw them at random. Scores are divided by sqrt(H); the paper leaves that
  to the initial weights.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import cache, pieces
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
# Identities are no field: that they make it dense has a test of its own.
DENSE_WHEN = None
CASES = ({}, {"num_kv_heads": 2, "piece": 5})
# Scores of a head in one piece, unless the config says otherwise.
SCORES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      piece: Queries whose scores are held at a time; 0 is as many as make 2^17 scores, at least 64.
    """

    piece: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.piece < 0:
            raise ValueError(
                f"piece={self.piece} must be positive, or 0 for {SCORES} scores a piece"
            )


class _Mixtures(nn.Module):
    """Declares the two matrices [N, N], of heads in and heads out."""

    @nn.compact
    def __call__(self, N: int) -> dict[str, jax.Array]:
        return {name: self.param(name, lambda _: jnp.eye(N)) for name in ("before", "after")}


def extras(config: Config, inputs, memory=None, *, kernel_init) -> dict[str, jax.Array]:
    """`before` and `after` [N, N], from identities: row is the head in, column the head out."""
    return _Mixtures(name="heads")(config.num_heads)


def attend(config: Config, query, key, value, mask: Mask, before, after, bias=None) -> jax.Array:
    """softmax(scores mixed by `before` + bias) mixed by `after`, times the values, [B, T, N, H].

    Args:
      config: The variant's fields.
      query: [B, T, N, H].
      key: [B, S, K, H].
      value: [B, S, K, H].
      mask: A query that may see no key gives zeros.
      before: [N, N], heads of the scores to heads of the softmax.
      after: [N, N], heads of the softmax to heads of the values.
      bias: A `tinyattn.biases.Bias` of the mixed scores.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T, S, N, K, H = (size[axis] for axis in "BTSNKH")
    count, t = pieces.plan(T, config.piece, S, SCORES, pieces.FEWEST)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    before, after = before.astype(dtype), after.astype(dtype)
    key, value, poison = pieces.contained(key, value, dtype)
    bias = None if bias is None else bias.per_item(B, K, N // K)

    def piece(i, query):
        rows, columns = i * t + jnp.arange(t), jnp.arange(S)
        allowed = mask.allowed(rows, columns, S)[:, None]
        scores = jnp.einsum("btkmh,bksh->bkmts", query, key) / jnp.sqrt(H).astype(dtype)
        scores = jnp.where(poison[:, :, None, None], jnp.nan, scores).reshape(B, N, t, S)
        # Masked here as well: what is not finite behind a mask would reach the gradient of `before`.
        mixed = jnp.einsum("bnts,np->bpts", jnp.where(allowed, scores, 0), before)
        if bias is not None:
            each = jax.vmap(jax.vmap(lambda item: item.scores(rows, columns)))(bias)
            mixed += each.reshape(-1, N, t, S)
        weights = pieces.softmax(mixed, allowed)
        weights = jnp.einsum("bnts,np->bpts", weights, after).reshape(B, K, N // K, t, S)
        return jnp.einsum("bkmts,bksh->btkmh", weights, value)

    return pieces.each(piece, query.astype(dtype), K, count, t).astype(kind)


init_state, state_bytes = dense.init_state, dense.state_bytes


def step(
    config: Config, state: cache.Cache, query, key, value, before, after, active=None, bias=None
):
    """One token more, as `dense.step`, with the mixtures of `attend`."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    state = cache.write(state, key, value, active)
    seen = masks.padding(cache.valid(state))
    out = attend(config, query, state.key, state.value, seen, before, after, bias)
    return cache.full(state, out), state


def reference(config: Config, query, key, value, mask: Mask, before, after, bias=None) -> jax.Array:
    """The whole table of scores at once, in float32, with heads last to mix them."""
    T, N, H = query.shape[1:]
    S, dtype = key.shape[1], query.dtype
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    before, after = before.astype(jnp.float32), after.astype(jnp.float32)
    scores = jnp.einsum("btnh,bsnh->btsn", query.astype(jnp.float32), key) / jnp.sqrt(H)
    mixed = (scores @ before).transpose(0, 3, 1, 2)
    if bias is not None:
        mixed += bias.dense(N, T, S)
    allowed = mask.dense(T, S)[:, None]
    seen = allowed.any(-1, keepdims=True)
    mixed = jnp.where(seen, jnp.where(allowed, mixed, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(mixed, axis=-1), 0.0)
    weights = weights.transpose(0, 2, 3, 1) @ after
    return jnp.einsum("btsn,bsnh->btnh", weights, value).astype(dtype)


class Attention(attention.Shell):
    """Talking-heads attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed, in four products; only allowed pairs are useful. FLOPs an example."""
    N, H = config.num_heads, config.width(D)
    count, t = pieces.plan(T, config.piece, S, SCORES, pieces.FEWEST)
    executed, useful = count * t * S, float(mask.pairs(T, S).mean())

    def work(width):
        return attention.Work(2 * N * width * executed, 2 * N * width * useful)

    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "scores": work(H),
        "heads before": work(N),
        "heads after": work(N),
        "mix": work(H),
    }
