"""Norms: of each token's features, or of each feature over the tokens of a batch."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import weights
from tinyattn.model._config import Config

KINDS = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}
# What is left of a running average after a step.
KEPT = 0.9


class Batch(NamedTuple):
    """The tokens of a training step, over which statistics are taken.

    Attributes:
      valid: bool [B, T], False at padding, which does not count; None is all.
      axis: Of the devices that a batch is split over, by name; None is one.
    """

    valid: jax.Array | None
    axis: str | None


class BatchNorm(nn.Module):
    """Features of mean 0 and variance 1 over a batch, and a learned scale and bias.

    Source: Ioffe and Szegedy 2015, "Batch normalization", https://arxiv.org/abs/1502.03167, algorithms 1
      and 2.
    Differs: padding does not count; the running variance is that of the tokens seen, n / (n - 1) of which
      is the paper's estimate. Running averages are exponential ones, as Flax and PyTorch have them.
    """

    @nn.compact
    def __call__(self, x, batch: Batch | None = None):
        """[B, T, D] to the same, by running averages; or by those of a batch, which the averages follow."""
        D = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (D,))
        bias = self.param("bias", nn.initializers.zeros, (D,))
        mean = self._moved("mean", jnp.zeros, D)
        var = self._moved("var", jnp.ones, D)
        wide = x.astype(jnp.float32)
        if batch is not None:
            running, (mean, var) = (mean, var), moments(wide, batch)
            if self.is_mutable_collection(weights.MOVED):
                for name, old, new in zip(("mean", "var"), running, (mean, var), strict=True):
                    new = KEPT * old + (1 - KEPT) * jax.lax.stop_gradient(new)
                    self.put_variable(weights.MOVED, name, new)
        y = (wide - mean) * (jax.lax.rsqrt(var + 1e-5) * scale) + bias
        return y.astype(x.dtype)

    def _moved(self, name: str, first, D: int) -> jax.Array:
        return weights.value(self.param(name, lambda rng: weights.Moved(first(D))))


def moments(x: jax.Array, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Mean and variance [D] of x [B, T, D] over all tokens that count, on all devices."""
    some = jnp.ones((*x.shape[:2], 1), x.dtype)
    if batch.valid is not None:
        some *= batch.valid[..., None]

    def total(x):
        x = x.sum((0, 1))
        return x if batch.axis is None else jax.lax.psum(x, batch.axis)

    count = jnp.maximum(total(some), 1)
    # A select and not a product: what stands at padding need not be a number.
    mean = total(jnp.where(some > 0, x, 0.0)) / count
    return mean, total(jnp.where(some > 0, jnp.square(x - mean), 0.0)) / count


def norm(config: Config, name: str, x: jax.Array, batch: Batch | None = None) -> jax.Array:
    """x [B, T, D] by the norm of the config, with what is learned under `name`.

    Args:
      config: Of the model.
      name: Of the layer; to be called within a compact module.
      x: [B, T, D].
      batch: In training; None is evaluation.
    """
    if config.norm == "batchnorm":
        return BatchNorm(name=name)(x, batch)
    return KINDS[config.norm](dtype=x.dtype, name=name)(x)
