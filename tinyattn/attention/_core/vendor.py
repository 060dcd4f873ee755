"""cuDNN's fused attention through `jax.nn`, where it computes exactly what the core promises.

It takes half precision, and of masks causal ones and causal windows, which it skips block by block. It does
not take padding and segments: `jax.nn` hands them on as an array of all pairs, which gives a row that
sees nothing the mean of the values, or as lengths; neither lives through `jax.vmap`.

A derivative of its gradient is the core's, for the kernel of the gradient has none.

What was run: the choice, the gradients and NaN behind a mask on a CPU, with `jax.nn` in XLA in the kernel's
place; the lowering to cuDNN's calls; and the kernels on an H200 (`tests/test_kernel.py`, jax 0.11.2).
"""

import functools
import re

import jax
import jax.numpy as jnp

from tinyattn.masks import Mask

# Ampere is the first generation with the kernels.
OLDEST = (8, 0)
# Beyond, the gradient depends on generation and version.
WIDEST = 128


def capability() -> tuple[int, int] | None:
    """Generation of the default device if it is one of NVIDIA's, such as (9, 0)."""
    if jax.default_backend() != "gpu":
        return None
    # AMD's have names, such as gfx942.
    found = re.fullmatch(r"(\d+)\.(\d+)", jax.local_devices()[0].compute_capability)
    return found and (int(found[1]), int(found[2]))


def applies(query, key, value, mask: Mask, capability: tuple[int, int] | None) -> bool:
    """Whether the kernel takes these heads and honours this mask, by shapes, types and structure alone.

    Args:
      query: [B, T, N, H], an array or its shape and type.
      key: [B, S, K, H].
      value: [B, S, K, I].
      mask: Who sees whom.
      capability: Of `capability`.
    """
    if capability is None or capability < OLDEST:
        return False
    (T, H), S = query.shape[1::2], key.shape[1]
    heads = (
        query.dtype in (jnp.float16, jnp.bfloat16)
        and query.dtype == key.dtype == value.dtype
        and key.shape == value.shape
        and H <= WIDEST
        and H % 8 == 0
        # Of odd lengths it has no gradient.
        and T % 2 == S % 2 == 0
    )
    if mask.key_valid is not None or mask.segments:
        return False
    if mask.lookahead is None and mask.lookback is None:
        return heads
    # A row then sees itself at least.
    causal = mask.lookahead == 0 and (mask.lookback is None or mask.lookback >= 0)
    return heads and causal and T == S


def attend(core, scale: float, query, key, value, mask: Mask, poison):
    """Attention where `applies` says so, [B, T, N, H].

    Args:
      core: (query, key, value) -> the same by the core, for a derivative of the gradient.
      scale: Of the scores.
      query: [B, T, N, H].
      key: [B, S, K, H], finite if there is a mask.
      value: [B, S, K, H], likewise.
      mask: Who sees whom.
      poison: bool [B, K, S], keys in whose place a query that sees them reads NaN; None is none.
    """
    kernel = functools.partial(
        jax.nn.dot_product_attention,
        scale=scale,
        is_causal=mask.lookahead == 0,
        # Without `is_causal` a window would show all that is ahead.
        local_window_size=None if mask.lookback is None else (mask.lookback, 0),
        implementation="cudnn",
    )
    out = _attend(kernel, core, query, key, value)
    if poison is None:
        return out
    read = jnp.cumsum(poison, axis=2, dtype=jnp.int32)
    if mask.lookback is not None:
        before = jnp.pad(read, ((0, 0), (0, 0), (mask.lookback + 1, 0)))
        read -= before[..., : read.shape[2]]
    read = jnp.repeat(read > 0, query.shape[2] // key.shape[2], axis=1)
    return jnp.where(read.swapaxes(1, 2)[..., None], jnp.nan, out)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attend(kernel, core, *heads):
    return kernel(*heads)


def _attend_fwd(kernel, core, *heads):
    out, pull = jax.vjp(kernel, *heads)
    return out, (heads, pull)


def _attend_bwd(kernel, core, saved, dout):
    heads, pull = saved
    return _gradient(core, pull, dout, *heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gradient(core, pull, dout, *heads):
    return pull(dout)


def _gradient_fwd(core, pull, dout, *heads):
    return pull(dout), (dout, heads)


def _gradient_bwd(core, saved, cotangents):
    dout, heads = saved

    def gradient(dout, *heads):
        return jax.vjp(core, *heads)[1](dout)

    return None, *jax.vjp(gradient, dout, *heads)[1](cotangents)


_attend.defvjp(_attend_fwd, _attend_bwd)
_gradient.defvjp(_gradient_fwd, _gradient_bwd)
