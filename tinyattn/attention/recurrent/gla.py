"""Gated linear attention: a state that forgets each feature of the keys at a rate each token sets.

The state is S_t = diag(alpha_t) S_{t-1} + k_t v_t^T and is read by q_t, so a key s weighs
Σ_p q_tp k_sp Π_{s<r<=t} alpha_rp, with alpha_t = sigmoid(gate_t)^(1/tau) of logits of the tokens.

Chunks are joined by the state. Within one, halves are joined from single tokens up: the later half of a
run reads the earlier by one product, with the decay from the key to the middle on the keys and that from
the middle to the query on the queries. Both are sums of logarithms that are at most 0, never differences,
so that no decay is too strong, and no pair of the future is worked on. Queries of a group share a state.

Source: Yang et al. 2023, "Gated Linear Attention Transformers with Hardware-Efficient Training",
  https://arxiv.org/abs/2312.06635, section 4.1 for the recurrence, 4.2 and 4.3 for the forms by chunks,
  4.4 for the low-rank gate and its temperature.
Differs: the norm and the gate of outputs are not here. Sub-chunks are halves down to one token, where the
  paper's are of one size and their own pairs are summed feature by feature. Both layers of the gate have
  a bias. It runs forward: without a causal mask it is causal all the same. A masked token neither adds
  nor decays.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tinyattn import affine, attention, masks
from tinyattn.attention._core.layout import contain
from tinyattn.attention.recurrent import _decode, _features
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * (H + chunk)"
DENSE_WHEN = None
CASES = (
    {"chunk": 4},
    {"chunk": 8, "num_kv_heads": 2, "rank": 3, "tau": 1.0},
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_features.Halving):
    """
    Attributes:
      rank: Width between the two layers that make the gates of a token.
      tau: Temperature of the gates: a decay is the tau-th root of a sigmoid, so a large one forgets slowly.
    """

    rank: int = 16
    tau: float = 16.0

    def __post_init__(self):
        super().__post_init__()
        if self.rank < 1 or not self.tau > 0:
            raise ValueError(f"rank={self.rank} must be at least 1 and tau={self.tau} positive")


def extras(config: Config, inputs, memory, *, kernel_init) -> dict[str, jax.Array]:
    """The logits of the decays, {"gate": [B, T, K, H]}; they belong to the keys, which have no `memory`."""
    K, H = config.kv_heads, config.width(inputs.shape[-1])
    (narrow,) = affine.dense(inputs, {"gate_in": config.rank}, kernel_init)
    (gate,) = affine.dense(narrow, {"gate": K * H}, kernel_init)
    return {"gate": gate.reshape(*gate.shape[:-1], K, H)}


def attend(config: Config, query, key, value, mask: Mask, gate) -> jax.Array:
    """Σ_{s<=t} Σ_p q_tp k_sp Π_{s<r<=t} alpha_rp v_s / sqrt(H) over the keys allowed, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries.
    """
    attention.check(__name__, SUPPORTS, mask)
    size, dtype = attention.check_shapes(query, key, value), query.dtype
    if size["S"] != size["T"]:
        raise ValueError(f"a state needs keys of the queries: T={size['T']}, S={size['S']}")
    # A gate that is not a number spoils the state as a key does.
    *found, poison = contain(key, gate, value)
    key, gate, value = (x.astype(jnp.float32) for x in found)
    query = query.astype(jnp.float32) * size["H"] ** -0.5
    log_decay = _log_decays(config, gate)
    if mask.key_valid is not None:
        valid = mask.key_valid[:, :, None, None]
        key, value, log_decay = (jnp.where(valid, x, 0.0) for x in (key, value, log_decay))
    out = chunked(query, key, value, log_decay, config.tokens(size["T"]))
    return _features.poisoned(out, poison, mask & masks.causal()).astype(dtype)


def _log_decays(config: Config, gate):
    return jax.nn.log_sigmoid(gate) / config.tau


def chunked(query, key, value, log_decay, C: int) -> jax.Array:
    """The sums in time and memory linear in T, [B, T, N, I].

    Args:
      query: [B, T, N, P].
      key: [B, T, K, P].
      value: [B, T, K, I].
      log_decay: [B, T, K, P], at most 0.
      C: Tokens of a chunk, a power of two.
    """
    B, T, K, _ = key.shape
    chunks = -(-T // C)

    def cut(x):
        """[B, T, K or N, P] to [chunks, B, K, 1 or M, C, P] with padded keys of 0."""
        x = jnp.pad(x, ((0, 0), (0, chunks * C - T), (0, 0), (0, 0)))
        return x.reshape(B, chunks, C, K, -1, x.shape[-1]).transpose(1, 0, 3, 4, 2, 5)

    query, key, value, log_decay = (
        cut(query),
        *(cut(x)[:, :, :, 0] for x in (key, value, log_decay)),
    )

    # Computed anew in the backward pass, so that what a chunk works with is held for one of them only.
    @jax.checkpoint
    def step(state, chunk):
        query, key, value, log_decay = chunk
        sums, since, until = _within(query, key, value, log_decay)
        sums += jnp.einsum("bkmtp,bkpi->bkmti", query * jnp.exp(since)[:, :, None], state)
        own = jnp.einsum("bksp,bksi->bkpi", key * jnp.exp(until), value)
        return jnp.exp(since[..., -1, :])[..., None] * state + own, sums

    state = jnp.zeros((B, K, key.shape[-1], value.shape[-1]), value.dtype)
    out = jax.lax.scan(step, state, (query, key, value, log_decay))[1]
    return out.transpose(1, 0, 4, 2, 3, 5).reshape(B, chunks * C, -1, value.shape[-1])[:, :T]


def _within(query, key, value, log_decay):
    """The sums over the keys of the same chunk, and the logarithms of the decays to its two ends.

    Args:
      query: [..., M, C, P].
      key: [..., C, P].
      value: [..., C, I].
      log_decay: [..., C, P].

    Returns:
      The sums [..., M, C, I]; the decay of a state from before the chunk up to each token, its own
      included; and that of each key from its token to the end, its own not included; [..., C, P].
    """
    C = key.shape[-2]
    sums = jnp.einsum("...mtp,...tp->...mt", query, key)
    sums = jnp.einsum("...mt,...ti->...mti", sums, value)
    since, until = log_decay, jnp.zeros_like(log_decay)
    h = 1
    while h < C:

        def halves(x, h=h):
            """[..., C, P] to its runs' earlier and later halves, each [..., C / 2h, h, P]."""
            x = x.reshape(*x.shape[:-2], C // (2 * h), 2, h, x.shape[-1])
            return x[..., 0, :, :], x[..., 1, :, :]

        def joined(earlier, later):
            x = jnp.stack([earlier, later], axis=-3)
            return x.reshape(*x.shape[:-4], C, x.shape[-1])

        (since_0, since_1), (until_0, until_1) = halves(since), halves(until)
        near = halves(query)[1] * jnp.exp(since_1)[..., None, :, :, :]
        far = halves(key)[0] * jnp.exp(until_0)
        scores = jnp.einsum("...mrtp,...rsp->...mrts", near, far)
        sums_0, sums_1 = halves(sums)
        sums_1 += jnp.einsum("...mrts,...rsi->...mrti", scores, halves(value)[0])
        sums = joined(sums_0, sums_1)
        whole_0, whole_1 = since_0[..., -1:, :], since_1[..., -1:, :]
        since, until = joined(since_0, since_1 + whole_0), joined(until_0 + whole_1, until_1)
        h *= 2
    return sums, since, until


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> _decode.State:
    """An empty state, float32 whatever the `dtype` of the heads, and the same for any `capacity`."""
    return _decode.empty(B, config.kv_heads, H, H)


def step(config: Config, state: _decode.State, query, key, value, gate, active=None):
    """One token more, as `dense.step`: the recurrence itself."""
    keep = jnp.exp(_log_decays(config, gate[:, 0].astype(jnp.float32)))
    state = _decode.write(state, key, value, keep=keep, active=active)
    return (_decode.read(state, query) * query.shape[-1] ** -0.5).astype(query.dtype), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example: the same for any `length` and any `itemsize` of the heads."""
    H = config.width(D)
    return _decode.nbytes(config.kv_heads, H, H)


def reference(config: Config, query, key, value, mask: Mask, gate) -> jax.Array:
    """The quadratic form: every pair's own product of decays, feature by feature."""
    T, N, H = query.shape[1:]
    key, value, gate = (
        attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value, gate)
    )
    logs = -jnp.log1p(jnp.exp(-jnp.abs(gate))) + jnp.minimum(gate, 0.0)
    t, s, r = jnp.ix_(*[jnp.arange(T)] * 3)
    valid = jnp.ones((1, T), bool) if mask.key_valid is None else mask.key_valid
    steps = ((s < r) & (r <= t) & valid[:, None, None]).astype(jnp.float32)
    decay = jnp.exp(
        jnp.einsum("btsr,brnp->bntsp", jnp.broadcast_to(steps, (len(gate), T, T, T)), logs)
        / config.tau
    )
    scores = jnp.einsum("btnp,bsnp,bntsp->bnts", query.astype(jnp.float32), key, decay) / H**0.5
    allowed = mask.dense(T, T) & jnp.tril(jnp.ones((T, T), bool))
    scores = jnp.where(allowed[:, None], scores, 0.0)
    return jnp.einsum("bnts,bsni->btni", scores, value).astype(query.dtype)


def effective(config: Config, mask: Mask, T: int) -> jax.Array:
    """The pairs that count, bool [B or 1, T, T]: none of the future."""
    return (mask & masks.causal()).dense(T, T)


class Attention(attention.Shell):
    """Gated linear attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Within chunks the pairs t >= s and no others, then states and reads. FLOPs an example.

    Useful work is the recurrent form's: every key into the state once, every query out of it once.
    """
    N, K, H, C = config.num_heads, config.kv_heads, config.width(D), config.tokens(T)
    padded = -(-T // C) * C
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "gate": attention.products(T * config.rank * (D + K * H)),
        "within chunks": attention.Work(N * padded * (C + 1) * 2 * H, 0),
        "state": attention.Work(2 * K * padded * H * H, 2 * K * T * H * H),
        "read": attention.Work(2 * N * padded * H * H, 2 * N * T * H * H),
    }
