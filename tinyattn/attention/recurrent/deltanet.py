"""DeltaNet: a state that replaces the value it holds under a key; gated, it forgets at each token's rate.

Linear attention adds k v^T to its state, so that values of keys that are alike pile up. The delta rule
first takes away what the key finds, to the extent of a writing strength beta:

  S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T,  out_t = S_t^T q_t,

with queries and keys of length 1, beta = sigmoid of a logit, and alpha = 1 or, where `gated`, the decay
exp(-exp(rate) softplus(decay)) of a logit a token and a rate a head.

Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
  https://arxiv.org/abs/2406.06484, section 2.2 and 3; Yang et al. 2024, "Gated Delta Networks",
  https://arxiv.org/abs/2412.06464, section 3.1, for `gated`, with decays and initial values as in the
  authors' code.
Differs: no scale 1/sqrt(H), which the norm of outputs takes out again in the authors' code; that norm,
  the gate of outputs, the short convolutions and SiLU of queries, keys and values are not here. Query
  heads that share a key write it with strengths and decays of their own. It runs forward: without a
  causal mask it is causal all the same. A masked token neither writes nor decays.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import activations, affine, attention, masks
from tinyattn.attention._core.layout import contain
from tinyattn.attention.recurrent import _decode, _delta, _features
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "padding"})
SIMULATED = False
COST = "T * (H + chunk)"
DENSE_WHEN = None
CASES = (
    {"chunk": 4},
    {"chunk": 8, "gated": True, "num_kv_heads": 2},
)
# Added to squared lengths, so that a key of zeros has a gradient.
SMALLEST = 1e-6
# Logarithms of rates up to this: no state survives it, and what is larger would overflow.
FASTEST = 30.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(_features.Halving):
    """
    Attributes:
      gated: Whether the state decays, which makes it the gated DeltaNet.
    """

    gated: bool = False


class _Decay(nn.Module):
    """The logits of a head's decays and its rate, drawn so that states last for one token to thousands."""

    N: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, inputs):
        def rates(key, shape):
            return jnp.log(jax.random.uniform(key, shape, minval=1e-3, maxval=16.0))

        def steps(key, shape):
            low, high = math.log(1e-3), math.log(0.1)
            size = jnp.exp(jax.random.uniform(key, shape, minval=low, maxval=high))
            return size + jnp.log(-jnp.expm1(-size))  # of which the softplus is `size`

        kernel = self.param("kernel", self.kernel_init, (inputs.shape[-1], self.N))
        bias, rate = self.param("bias", steps, (self.N,)), self.param("rate", rates, (self.N,))
        kernel, bias = kernel.astype(inputs.dtype), bias.astype(inputs.dtype)
        return affine.affine(activations.rounded(inputs), kernel, bias), rate


def extras(config: Config, inputs, memory, *, kernel_init) -> dict[str, jax.Array]:
    """Logits "beta" and, where gated, "decay", [B, T, N], and the logarithms "rate" [N]; no `memory`."""
    (beta,) = affine.dense(inputs, {"beta": config.num_heads}, kernel_init)
    if not config.gated:
        return {"beta": beta}
    decay, rate = _Decay(config.num_heads, kernel_init, name="decay")(inputs)
    return {"beta": beta, "decay": decay, "rate": rate}


def attend(config: Config, query, key, value, mask: Mask, beta, decay=None, rate=None) -> jax.Array:
    """What the state of the keys up to its own holds under each query, [B, T, N, H].

    Raises:
      ValueError: The keys are not those of the same sequence as the queries, or the config's `gated` and
        the arrays given do not fit together.
    """
    attention.check(__name__, SUPPORTS, mask)
    size, dtype = attention.check_shapes(query, key, value), query.dtype
    if size["S"] != size["T"]:
        raise ValueError(f"a state needs keys of the queries: T={size['T']}, S={size['S']}")
    N = size["N"]
    key, value, poison = contain(*(attention.repeat_heads(x, N) for x in (key, value)))
    good = jnp.isfinite(beta)
    if _gated(config, decay, rate):
        good &= jnp.isfinite(decay)
        decay = jnp.where(good, decay, 0.0)
    beta, log_decay = _gates(jnp.where(good, beta, 0.0), decay, rate)
    # A gate that is not a number spoils the state as a key does.
    poison |= ~good.swapaxes(1, 2)
    if mask.key_valid is not None:
        # A key of zeros finds nothing and writes nothing.
        key = jnp.where(mask.key_valid[:, :, None, None], key, 0.0)
        if config.gated:
            log_decay = jnp.where(mask.key_valid[:, :, None], log_decay, 0.0)
    heads = _unit(query), _unit(key), value.astype(jnp.float32)
    out = _delta.chunked(*heads, beta, log_decay, config.tokens(size["T"]))
    return _features.poisoned(out, poison, mask & masks.causal()).astype(dtype)


def _gated(config: Config, decay, rate) -> bool:
    """Whether there is decay.

    Raises:
      ValueError: The config and the arrays do not agree about it.
    """
    given = [name for name, x in (("decay", decay), ("rate", rate)) if x is not None]
    if given != (["decay", "rate"] if config.gated else []):
        raise ValueError(
            f"gated={config.gated} does not go with {given or 'no arrays'}: give `decay` and `rate` if"
            f" gated, else neither"
        )
    return config.gated


def _gates(beta, decay, rate):
    """Strengths and the logarithms of decays, of logits [..., N] and log rates [N]; None is no decay."""
    beta = jax.nn.sigmoid(beta.astype(jnp.float32))
    if decay is None:
        return beta, None
    rate = jnp.exp(jnp.minimum(rate.astype(jnp.float32), FASTEST))
    return beta, -rate * jax.nn.softplus(decay.astype(jnp.float32))


def _unit(x: jax.Array) -> jax.Array:
    """[..., H] over its length along H, in float32."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.square(x).sum(-1, keepdims=True) + SMALLEST)


def init_state(config: Config, B: int, capacity: int, H: int, dtype=jnp.float32) -> _decode.State:
    """An empty state, float32 whatever the `dtype` of the heads, and the same for any `capacity`."""
    return _decode.empty(B, config.num_heads, H, H)


def step(config, state, query, key, value, beta, decay=None, rate=None, active=None):
    """One token more, as `dense.step`: the recurrence itself."""
    _gated(config, decay, rate)
    key, value = (attention.repeat_heads(x, config.num_heads) for x in (_unit(key), value))
    beta, log_decay = _gates(beta, decay, rate)
    keep = jnp.ones_like(beta) if log_decay is None else jnp.exp(log_decay)
    written = beta[..., None] * (value - keep[..., None] * _decode.read(state, key))
    state = _decode.write(state, key, written, keep=keep[:, 0, :, None], active=active)
    return _decode.read(state, _unit(query)).astype(query.dtype), state


def state_bytes(config: Config, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example: the same for any `length` and any `itemsize` of the heads."""
    H = config.width(D)
    return _decode.nbytes(config.num_heads, H, H)


def reference(
    config: Config, query, key, value, mask: Mask, beta, decay=None, rate=None
) -> jax.Array:
    """The recurrence, token by token, with the matrix I - beta k k^T written out."""
    T, N, H = query.shape[1:]
    B, dtype = query.shape[0], query.dtype
    query, key, value, beta = (x.astype(jnp.float32) for x in (query, key, value, beta))
    key, value = (attention.repeat_heads(x, N) for x in (key, value))
    query, key = (x / jnp.sqrt((x * x).sum(-1, keepdims=True) + SMALLEST) for x in (query, key))
    beta, alpha = 1 / (1 + jnp.exp(-beta)), jnp.ones((B, T, N))
    if config.gated:
        alpha = (1 + jnp.exp(decay.astype(jnp.float32))) ** -jnp.exp(rate.astype(jnp.float32))
    valid = jnp.ones((B, T), bool) if mask.key_valid is None else jnp.asarray(mask.key_valid)

    def one(state, t):
        k, strength = key[:, t], beta[:, t, :, None, None]
        forget = jnp.eye(H) - strength * jnp.einsum("bnp,bnr->bnpr", k, k)
        new = alpha[:, t, :, None, None] * jnp.einsum("bnpr,bnri->bnpi", forget, state)
        new += strength * jnp.einsum("bnp,bni->bnpi", k, value[:, t])
        state = jnp.where(valid[:, t, None, None, None], new, state)
        return state, jnp.einsum("bnpi,bnp->bni", state, query[:, t])

    outs = jax.lax.scan(one, jnp.zeros((B, N, H, H)), jnp.arange(T))[1]
    return outs.swapaxes(0, 1).astype(dtype)


def effective(config: Config, mask: Mask, T: int) -> jax.Array:
    """The pairs that count, bool [B or 1, T, T]: none of the future."""
    return (mask & masks.causal()).dense(T, T)


class Attention(attention.Shell):
    """DeltaNet as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Chunks, writes and reads. FLOPs an example."""
    N, H = config.num_heads, config.width(D)
    return {
        **attention.projection_flops(config, D=D, T=T, S=S),
        "gates": attention.products(T * D * N * (2 if config.gated else 1)),
        **_delta.flops(N=N, P=H, I=H, C=config.tokens(T), T=T),
    }
