"""Synthesizer: scores from each token alone, or learned for pairs of positions; no query meets a key.

`dense` reads a token's scores of all positions off the token itself, by a layer of two maps of which the
query projection is the first. `random` learns a table of scores [T, S] that no token changes, whole or as
a product of rank `rank`. Dense and factored scores are products, so they go through the softmax core; the
table goes in pieces of queries, whose weights are computed again in the backward pass.

Source: Tay et al. 2020, "Synthesizer", https://arxiv.org/abs/2005.00743, sections 3.1 (dense), 3.2
  (random) and 3.3 (factored); that queries are the first map, each head has its own second one and no
  biases follow it is the authors' code.
Differs: no mixtures of several kinds, and no factored form of the dense one. Masks hold before the softmax.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, attention
from tinyattn.attention._core import cache, pieces, softmax
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "bias"})
SIMULATED = False
COST = "T * T"
DENSE_WHEN = None
CASES = (
    {"length": 100},
    {"length": 101, "kind": "random", "num_kv_heads": 2},
    {"length": 102, "kind": "random", "rank": 3, "num_kv_heads": 1},
)
KINDS = ("dense", "random")
# Scores of a head in one piece of a whole table.
SCORES = 1 << 17


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """
    Attributes:
      kind: Whether scores come of each token ("dense") or of positions alone ("random").
      length: The longest sequence (tokens).
      rank: Of a random table that is a product of two; 0 is the whole table.
    """

    kind: str = "dense"
    length: int = 512
    rank: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(KINDS)}")
        if self.length < 1 or self.rank < 0:
            raise ValueError(
                f"length={self.length} must be at least 1 and rank={self.rank} positive, or 0 for a"
                " whole table"
            )
        if self.rank and self.kind != "random":
            raise ValueError(f"rank={self.rank} is of a random table; give kind='random' or rank=0")


def project(config: Config, inputs, memory=None, *, rotate=None, kernel_init):
    """The value heads, also in the place of keys, and query heads where tokens make the scores.

    Raises:
      ValueError: Positions are to be rotated, which only a product of queries and keys reads.
    """
    if rotate is not None:
        raise ValueError("a synthesizer has no keys to rotate; choose positions other than rotary")
    B, T, D = inputs.shape
    N, K, H = config.num_heads, config.kv_heads, config.width(D)
    layers = {"query": N * H, "value": K * H} if config.kind == "dense" else {"value": K * H}
    *query, value = affine.dense(inputs, layers, kernel_init)
    value = value.reshape(B, T, K, H)
    query = query[0].reshape(B, T, N, H) if query else jnp.zeros((B, T, N, H), value.dtype)
    return query, value, value


class _Scores(nn.Module):
    """Declares what scores are made of: a matrix for each head."""

    config: Config
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, H: int) -> dict[str, jax.Array]:
        config = self.config
        names = ("rows", "columns") if config.rank else ("columns",)
        width = H if config.kind == "dense" else config.rank or config.length

        def init(rng):
            draw = jax.vmap(lambda rng: self.kernel_init(rng, (width, config.length)))
            return draw(jax.random.split(rng, config.num_heads))

        return {name: self.param(name, init) for name in names}


def extras(config: Config, inputs, memory=None, *, kernel_init) -> dict[str, jax.Array]:
    """`columns`: [N, H, length] of the dense kind, [N, rank, length] beside `rows`, or a whole table."""
    return _Scores(config, kernel_init, name="scores")(config.width(inputs.shape[-1]))


def attend(config: Config, query, key, value, mask: Mask, columns, rows=None, bias=None):
    """softmax(synthesised scores + bias) value over the keys that the mask allows, [B, T, N, H].

    Args:
      config: The variant's fields.
      query: [B, T, N, H]; of the random kind only the shape counts.
      key: [B, S, K, H], of which only the shape counts.
      value: [B, S, K, H].
      mask: A query that may see no key gives zeros.
      columns: [N, H, length] makes the scores of relu(query); [N, rank, length] those of `rows`; or
        [N, length, length], the scores of the random kind themselves.
      rows: [N, rank, length], of a table of low rank.
      bias: A `tinyattn.biases.Bias` of the scores.

    Raises:
      ValueError: The keys are not those of the queries' sequence, or it is longer than `length`.
    """
    attention.check(__name__, SUPPORTS, mask)
    size = attention.check_shapes(query, key, value)
    B, T, S, N = (size[axis] for axis in "BTSN")
    if S != T:
        raise ValueError(f"scores are of one sequence: T={T}, S={S}")
    _fits(config, T)
    kind, dtype = query.dtype, jnp.promote_types(query.dtype, jnp.float32)
    columns = columns.astype(dtype)
    if config.kind == "random" and not config.rank:
        return _mix_table(columns[:, :T, :T], value.astype(dtype), mask, bias).astype(kind)
    if config.rank:
        query = jnp.broadcast_to(rows[:, :, :T].transpose(2, 0, 1), (B, T, N, config.rank))
    else:
        query = jax.nn.relu(query)
    # A column is a key that all examples share.
    keys = columns[:, :, :T].transpose(2, 0, 1)
    keys = jnp.broadcast_to(keys, (B, *keys.shape))
    value = attention.repeat_heads(value.astype(dtype), N)
    out = softmax.attend(query.astype(dtype), keys, value, mask, scale=1.0, bias=bias)
    return out.astype(kind)


def _fits(config: Config, T: int) -> None:
    if config.length < T:
        raise ValueError(
            f"a sequence of {T} tokens does not fit length={config.length}; give a longer one"
        )


def _mix_table(table, value, mask: Mask, bias) -> jax.Array:
    """Softmax of a table [N, T, S] over allowed keys, times the values [B, S, K, H]."""
    (N, T, S), (B, _, K, H) = table.shape, value.shape
    count, t = pieces.plan(T, 0, S, SCORES, pieces.FEWEST)
    _, value, poison = pieces.contained(value, value, value.dtype)
    bias = None if bias is None else bias.per_item(B, K, N // K)

    @jax.checkpoint
    def piece(i, scores):
        rows, columns = i * t + jnp.arange(t), jnp.arange(S)
        allowed = mask.allowed(rows, columns, S)[:, None, None]
        scores = scores.reshape(K, N // K, t, S)
        if bias is not None:
            scores += jax.vmap(jax.vmap(lambda item: item.scores(rows, columns)))(bias)
        weights = pieces.softmax(jnp.where(poison[:, :, None, None], jnp.nan, scores), allowed)
        return jnp.einsum("bkmts,bksh->btkmh", weights, value)

    # Pieces are handed out, not cut out within: the gradient of a cut is as large as the table.
    table = jnp.pad(table, ((0, 0), (0, count * t - T), (0, 0)))
    table = table.reshape(N, count, t, S).swapaxes(0, 1)
    out = jax.lax.map(lambda x: piece(*x), (jnp.arange(count), table))
    return out.swapaxes(0, 1).reshape(B, count * t, N, H)[:, :T]


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> cache.Cache:
    """An empty cache of values for `capacity` tokens of B examples; keys have no width."""
    _fits(config, capacity)
    empty = cache.empty(B, capacity, config.kv_heads, H, dtype)
    return empty._replace(key=empty.key[..., :0])


def step(config: Config, state, query, key, value, columns, rows=None, active=None, bias=None):
    """One token more, as `dense.step`: its own scores, or those of its position."""
    active = jnp.ones(query.shape[0], bool) if active is None else active
    at, N = state.length, query.shape[2]
    state = cache.write(state, key[..., :0], value, active)
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    columns = columns[..., : state.value.shape[1]].astype(dtype)
    if config.kind == "dense":
        scores = jnp.einsum("btnh,nhs->bnts", jax.nn.relu(query.astype(dtype)), columns)
    elif config.rank:
        scores = jnp.einsum("nrb,nrs->bns", rows[:, :, at].astype(dtype), columns)[:, :, None]
    else:
        scores = columns[:, at].swapaxes(0, 1)[:, :, None]
    if bias is not None:
        scores += bias.dense(N, 1, scores.shape[-1])
    weights = pieces.softmax(scores, cache.valid(state)[:, None, None])
    values = attention.repeat_heads(state.value.astype(dtype), N)
    out = jnp.einsum("bnts,bsnh->btnh", weights, values).astype(query.dtype)
    return cache.full(state, out), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: values and the length."""
    return length * config.kv_heads * config.width(D) * itemsize + 4


def reference(config: Config, query, key, value, mask: Mask, columns, rows=None, bias=None):
    """The whole table of weights at once, in float32."""
    B, T, N, _ = query.shape
    tokens, columns = jnp.maximum(query.astype(jnp.float32), 0.0), columns.astype(jnp.float32)
    if config.kind == "dense":
        scores = tokens.swapaxes(1, 2) @ columns
    elif config.rank:
        scores = rows.astype(jnp.float32).swapaxes(1, 2) @ columns
    else:
        scores = columns
    scores = jnp.broadcast_to(scores[..., :T, :T], (B, N, T, T))
    if bias is not None:
        scores += bias.dense(N, T, T)
    allowed = mask.dense(T, T)[:, None]
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    weights = jnp.where(seen, jax.nn.softmax(scores, axis=-1), 0.0)
    value = attention.repeat_heads(value, N).astype(jnp.float32)
    return jnp.einsum("bnts,bsnh->btnh", weights, value).astype(query.dtype)


class Attention(attention.Shell):
    """Synthesizer attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """No keys are projected, nor queries by the random kind, whose table costs nothing to read."""
    N, H = config.num_heads, config.width(D)
    parts = attention.projection_flops(config, D=D, T=T, S=S)
    unused = {"key"} if config.kind == "dense" else {"key", "query"}
    parts = {name: part for name, part in parts.items() if name not in unused}
    executed, useful = softmax.pairs(T, S, mask), float(mask.pairs(T, S).mean())
    if config.kind == "random" and not config.rank:
        count, t = pieces.plan(T, 0, S, SCORES, pieces.FEWEST)
        return parts | {"mix": attention.Work(2 * N * H * count * t * S, 2 * N * H * useful)}
    width = config.rank or H
    return parts | {
        "scores": attention.Work(2 * N * width * executed, 2 * N * width * useful),
        "mix": attention.Work(2 * N * H * executed, 2 * N * H * useful),
    }
