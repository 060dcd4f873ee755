"""Scaled dot-product attention over all keys: multi-head, grouped-query and multi-query.

Options combine with each other. A sink is a score without a value in every softmax. A gate scales what
each head read, component by component. Forget gates take Σ_{s<r<=t} log f_r off the score of key s for
query t, where r runs over the tokens that t may see: a masked token decays nothing.

Source: Vaswani et al. 2017, "Attention is all you need", https://arxiv.org/abs/1706.03762, section 3.2;
  Ainslie et al. 2023, "GQA", https://arxiv.org/abs/2305.13245, section 2.2, for `num_kv_heads`; Gemma Team
  2024, "Gemma 2", https://arxiv.org/abs/2408.00118, section 2, for `cap`; Dehghani et al. 2023, "ViT-22B",
  https://arxiv.org/abs/2302.05442, section 2, for `qk_norm`; Miller 2023, "Attention is off by one",
  https://www.evanmiller.org/attention-is-off-by-one.html, and OpenAI 2025, "gpt-oss model card",
  https://arxiv.org/abs/2508.10925, section 2, for `sink`; Qiu et al. 2025, "Gated attention for large
  language models", https://arxiv.org/abs/2505.06708, section 2.2, for `gate`; Lin et al. 2025,
  "Forgetting Transformer", https://arxiv.org/abs/2503.02130, section 3, for `forget`; Kitaev et al. 2020,
  "Reformer", https://arxiv.org/abs/2001.04451, section 2, for `tie`.
Differs: a query that may see no key gives zeros, where a softmax over a masked row gives the mean of
  the values. The norm of queries and keys is by root mean square and has no gain to learn. A gate has a
  bias. No f_r is less than exp(-100). Of the Forgetting Transformer's block only the forget gates are
  here. Tied keys are not brought to length 1 and a token sees itself as any other.
"""

import dataclasses

import jax
import jax.numpy as jnp

from tinyattn import attention, masks
from tinyattn.attention._core import cache, softmax
from tinyattn.attention.full import _forget, _options
from tinyattn.masks import Mask

SUPPORTS = frozenset({"causal", "window", "padding", "segments", "cross", "bias"})
SIMULATED = False
COST = "T * T"
DENSE_WHEN = {}
CASES = (
    {},
    {"num_kv_heads": 2, "head_dim": 5, "sink": "learned", "gate": True},
    {"cap": 1.0, "qk_norm": True, "sink": "one", "tie": True, "block": 5},
)
SINKS = ("none", "one", "learned")
# Root mean squares below this are taken as it, so that a zero query has a gradient.
SMALLEST = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(attention.Heads):
    """Multi-head by default; `num_kv_heads` makes it grouped- (1 < K < N) or multi-query (1).

    Attributes:
      cap: Scores s become cap tanh(s / cap), before any bias; 0 is no cap.
      qk_norm: Whether each query and key head is divided by its root mean square.
      sink: A score that takes its share of each softmax and has no value, so that a head may attend to
        nothing: "none", "one" (a score of 0, which adds 1 to the sum of exponentials) or "learned" (a
        score for each head).
      gate: Whether what the heads read is scaled by sigmoid(x W + b) of the query's token x, each
        component by its own.
      forget: Whether each token x lets fade what came before it, in each head by f = sigmoid(x w + b).
        The mask must be causal.
      tie: Whether one projection makes queries and keys; needs as many key heads as query heads.
      block: Most queries computed at once (tokens); 0 is the backend's choice, on a GPU its own kernel.
    """

    cap: float = 0.0
    qk_norm: bool = False
    sink: str = "none"
    gate: bool = False
    forget: bool = False
    tie: bool = False
    block: int = 0

    def __post_init__(self):
        super().__post_init__()
        if min(self.cap, self.block) < 0:
            raise ValueError(f"cap={self.cap} and block={self.block} must be positive, or 0")
        if self.sink not in SINKS:
            raise ValueError(f"sink={self.sink!r} must be one of {list(SINKS)}")
        if self.tie and self.kv_heads != self.num_heads:
            raise ValueError(
                f"tie=True makes a key head of each query head: num_kv_heads={self.num_kv_heads}"
                f" must be num_heads={self.num_heads}, or 0"
            )


project, extras = _options.project, _options.extras


def attend(
    config: Config, query, key, value, mask: Mask, bias=None, *, sink=None, gate=None, forget=None
) -> jax.Array:
    """sigmoid(gate) softmax(query key^T / sqrt(H) + bias) value over the allowed keys, [B, T, N, H].

    Args:
      config: The variant's fields; they say which of the last three arrays are taken.
      query: [B, T, N, H].
      key: [B, S, K, H].
      value: [B, S, K, H].
      mask: A query that may see no key gives zeros.
      bias: A `tinyattn.biases.Bias`.
      sink: Scores [N].
      gate: Logits [B, T, N, H].
      forget: Logits [B, T, N].

    Raises:
      ValueError: Arrays that do not fit the config, or forget gates without a causal mask or with keys
        of another sequence.
    """
    attention.check(__name__, SUPPORTS, mask)
    attention.check_shapes(query, key, value)
    config = _own(config)
    _options.check(config, query, sink=sink, gate=gate, forget=forget)
    if config.forget:
        key, forget = _forget.contain(key, forget)
        bias = _forget.bias(forget, mask, bias)
    return _mix(config, query, key, value, mask, bias, sink, gate)


def _mix(config: Config, query, key, value, mask, bias, sink, gate) -> jax.Array:
    """What `attend` and `step` share."""
    if config.qk_norm:
        query, key = _normed(query), _normed(key)
    if config.sink == "one":
        sink = jnp.zeros(query.shape[2])
    options = {"cap": config.cap, "bias": bias, "sink": sink, "block": config.block}
    out = softmax.attend(query, key, value, mask, **options)
    if config.gate:
        wide = jnp.promote_types(out.dtype, jnp.float32)
        out = (out.astype(wide) * jax.nn.sigmoid(gate.astype(wide))).astype(out.dtype)
    return out


def init_state(config: attention.Heads, B: int, capacity: int, H: int, dtype=jnp.float32):
    """An empty cache of keys and values, and logarithms of forget gates, for `capacity` tokens."""
    decays = config.num_heads if _own(config).forget else 0
    return cache.empty(B, capacity, config.kv_heads, H, dtype, decays=decays)


def step(
    config, state, query, key, value, active=None, bias=None, *, sink=None, gate=None, forget=None
):
    """One token more: its output [B, 1, N, H] among all tokens so far, and the new state.

    Args:
      config: The variant's fields.
      state: Of `init_state`, or of the step before.
      query: [B, 1, N, H].
      key: [B, 1, K, H].
      value: [B, 1, K, H].
      active: bool [B], examples that get a token; None is all. The output of the others means nothing
        and their state stays.
      bias: A `tinyattn.biases.Bias` of the scores of this query and all slots.
      sink: [N].
      gate: [B, 1, N, H].
      forget: [B, 1, N].

    Returns:
      The output, NaN beyond the capacity, and the state.
    """
    attention.check_shapes(query, key, value)
    config = _own(config)
    _options.check(config, query, sink=sink, gate=gate, forget=forget)
    active = jnp.ones(query.shape[0], bool) if active is None else active
    log_decay = None
    if config.forget:
        key, forget = _forget.contain(key, forget)
        log_decay = _forget.log_gates(forget)
    state = cache.write(state, key, value, active, log_decay)
    if config.forget:
        bias = _forget.cached(state.log_decay, bias)
    seen = masks.padding(cache.valid(state))
    out = _mix(config, query, state.key, state.value, seen, bias, sink, gate)
    return cache.full(state, out), state


def state_bytes(config: attention.Heads, *, D: int, length: int, itemsize: int = 4) -> int:
    """Bytes of the state of one example after `length` tokens: keys, values, gates and the length."""
    gates = config.num_heads * max(itemsize, 4) if _own(config).forget else 0
    return length * (2 * config.kv_heads * config.width(D) * itemsize + gates) + 4


def _own(config: attention.Heads) -> Config:
    """Another variant that builds on this one brings its heads, and none of the options."""
    if isinstance(config, Config):
        return config
    return Config(**{f.name: getattr(config, f.name) for f in dataclasses.fields(attention.Heads)})


def _normed(x: jax.Array) -> jax.Array:
    """[B, T, N, H] over its root mean square along H."""
    wide = x.astype(jnp.float32)
    square = jnp.square(wide).mean(-1, keepdims=True)
    return (wide * jax.lax.rsqrt(jnp.maximum(square, SMALLEST**2))).astype(x.dtype)


def reference(
    config: Config, query, key, value, mask: Mask, bias=None, *, sink=None, gate=None, forget=None
) -> jax.Array:
    """The whole table of weights at once, in float32, straight from the formula."""
    config = _own(config)
    N, H = query.shape[2:]
    key, value = (attention.repeat_heads(x, N).astype(jnp.float32) for x in (key, value))
    dtype, query = query.dtype, query.astype(jnp.float32)
    if config.qk_norm:
        query, key = (
            x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True) / H**0.5, SMALLEST)
            for x in (query, key)
        )
    scores = jnp.einsum("btnh,bsnh->bnts", query, key) / jnp.sqrt(H)
    if config.cap:
        scores = config.cap * jnp.tanh(scores / config.cap)
    T, S = scores.shape[2:]
    if bias is not None:
        scores += bias.dense(N, T, S)
    allowed = mask.dense(T, S)[:, None]
    if config.forget:
        t, s, r = jnp.ix_(*[jnp.arange(T)] * 3)
        between = (s < r) & (r <= t) & allowed[:, 0, :, None]
        logs = jax.nn.log_sigmoid(forget.astype(jnp.float32))
        scores += jnp.einsum("btsr,brn->bnts", between.astype(jnp.float32), logs)
    seen = allowed.any(-1, keepdims=True)
    scores = jnp.where(seen, jnp.where(allowed, scores, -jnp.inf), 0.0)
    if config.sink != "none":
        sink = jnp.zeros(N) if sink is None else sink.astype(jnp.float32)
        column = jnp.broadcast_to(sink[:, None, None], (*scores.shape[:3], 1))
        scores = jnp.concatenate([scores, column], axis=-1)
    weights = jax.nn.softmax(scores, axis=-1)[..., :S]
    out = jnp.einsum("bnts,bsnh->btnh", jnp.where(seen, weights, 0.0), value)
    if config.gate:
        out *= jax.nn.sigmoid(gate.astype(jnp.float32))
    return out.astype(dtype)


class Attention(attention.Shell):
    """Dense attention as a module."""


def flops(config: Config, mask: Mask, *, D: int, T: int, S: int) -> dict[str, attention.Work]:
    """Every pair is executed; only allowed pairs are useful. FLOPs an example.

    With `tie`, S = T is the queries' own sequence.
    """
    config = _own(config)
    per_pair = 2 * config.num_heads * config.width(D)
    executed, useful = softmax.pairs(T, S, mask, config.block), float(mask.pairs(T, S).mean())
    pairs = attention.Work(per_pair * executed, per_pair * useful)
    return {
        **_options.projection_flops(config, D=D, T=T, S=S),
        "scores": pairs,
        "mix": pairs,
    }
