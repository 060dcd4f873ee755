"""The engine of the delta rule: chunks whose corrections are solved for together, joined by a state.

The state S_t = alpha_t (I - beta_t k_t k_t^T) S_{t-1} + beta_t k_t v_t^T is a sum of keys times what each
has written: S_t = Σ_{s<=t} decay(t, s) k_s u_s^T with u_t = beta_t (v_t - alpha_t S_{t-1}^T k_t). Within a
chunk that starts from S this is a triangular system,

  (I + A) U = diag(beta) (V - diag(decay from the start) K S),  A_ts = beta_t decay(t, s) (k_t·k_s), s < t.

Source: Yang et al. 2024, "Parallelizing Linear Transformers with the Delta Rule over Sequence Length",
  https://arxiv.org/abs/2406.06484, section 3, for the chunks; Yang et al. 2024, "Gated Delta Networks",
  https://arxiv.org/abs/2412.06464, section 3.3, for decay in them.
Differs: the inverse of the triangle is made of those of its halves. The product of its powers (I - A)(I +
  A²)(I + A⁴)... is exact too, but where keys are alike its terms outgrow float32 by far.
"""

import jax
import jax.numpy as jnp

from tinyattn import attention
from tinyattn.attention.recurrent import _chunks


def chunked(query, key, value, beta, log_decay, C: int) -> jax.Array:
    """S_t^T q_t in time and memory linear in T, float32 [B, T, N, I].

    Args:
      query: [B, T, N, P].
      key: [B, T, N, P], of length at most 1, so that a write takes no more away than there is.
      value: [B, T, N, I].
      beta: [B, T, N], from 0 to 1.
      log_decay: [B, T, N], at most 0, or None for none.
      C: Tokens of a chunk, a power of two.
    """
    B, T, N, P = key.shape
    chunks = -(-T // C)

    def cut(x):
        """[B, T, N, ...] to [chunks, B, N, C, ...]; the padded tokens write nothing."""
        x = jnp.pad(x, ((0, 0), (0, chunks * C - T)) + ((0, 0),) * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(B, chunks, C, *x.shape[2:]), (1, 3), (0, 2))

    # Computed anew in the backward pass, so that what a chunk works with is held for one of them only.
    @jax.checkpoint
    def step(state, chunk):
        query, key, value, beta, log_decay = chunk
        between = jnp.tril(jnp.ones((C, C)))
        since = until = keep = 1.0
        if log_decay is not None:
            between, since = _chunks.decays(log_decay)
            since = since[..., None]
            until, keep = between[..., -1, :, None], since[..., -1:, :]
        near = jnp.tril(jnp.einsum("bntp,bnsp->bnts", key, key) * between, -1)
        inverse = inverted(beta[..., None] * near)
        old = jnp.einsum("bntp,bnpi->bnti", key * since, state)
        written = jnp.einsum("bnts,bnsi->bnti", inverse, beta[..., None] * (value - old))
        scores = jnp.einsum("bntp,bnsp->bnts", query, key) * between
        out = jnp.einsum("bnts,bnsi->bnti", scores, written)
        out += jnp.einsum("bntp,bnpi->bnti", query * since, state)
        return keep * state + jnp.einsum("bnsp,bnsi->bnpi", key * until, written), out

    given = [None if x is None else cut(x) for x in (query, key, value, beta, log_decay)]
    out = jax.lax.scan(step, jnp.zeros((B, N, P, value.shape[-1])), tuple(given))[1]
    return jnp.moveaxis(out, (0, 2), (1, 3)).reshape(B, chunks * C, N, -1)[:, :T]


def inverted(strict) -> jax.Array:
    """(I + A)^-1 of strictly lower triangular A [..., C, C], C a power of two.

    Of [[X, 0], [A, Y]] it is [[X^-1, 0], [-Y^-1 A X^-1, Y^-1]].
    """
    h = strict.shape[-1] // 2
    if h == 0:
        return jnp.ones_like(strict)
    first, last = inverted(jnp.stack([strict[..., :h, :h], strict[..., h:, h:]]))
    corner = -jnp.einsum("...tr,...rq,...qs->...ts", last, strict[..., h:, :h], first)
    return jnp.block([[first, jnp.zeros_like(first)], [corner, last]])


def flops(*, N: int, P: int, I: int, C: int, T: int) -> dict[str, attention.Work]:  # noqa: E741
    """The products of `chunked`; useful is what the recurrence needs. FLOPs an example."""
    padded = -(-T // C) * C
    # Two products for a corner of h x h: Σ 2 · 2h³ · C / 2h over h = 1, 2, ... C / 2 is 2 C (C² - 1) / 3.
    within = 2 * (C * C - 1) // 3 + 4 * C * (P + I)
    return {
        "within chunks": attention.Work(N * padded * within, 0),
        # What the key finds is taken away, and what it writes is added.
        "write": attention.Work(4 * N * padded * P * I, 4 * N * T * P * I),
        "read": attention.Work(2 * N * padded * P * I, 2 * N * T * P * I),
    }
