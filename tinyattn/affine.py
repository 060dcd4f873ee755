"""Affine layers, x W + b, whose gradient is asked of the compiler in the order that it runs fastest.

XLA on a CPU copies one operand of x^T dy into its transpose. JAX's own rule always has it copy dy; here
it is the narrower of the two. The values are the same.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp


@jax.custom_vjp
def affine(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """x [..., d_in] times kernel [d_in, d_out] plus bias [d_out], all of one dtype."""
    return x @ kernel + bias


def _forward(x, kernel, bias):
    return affine(x, kernel, bias), (x, kernel)


def _backward(saved, dy):
    x, kernel = saved
    rows, drows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    wide = {"preferred_element_type": jnp.promote_types(x.dtype, jnp.float32)}
    if rows.shape[1] <= drows.shape[1]:
        dkernel = jnp.einsum("ti,to->io", rows, drows, **wide)
    else:
        dkernel = jnp.einsum("to,ti->oi", drows, rows, **wide).T
    dbias = drows.sum(0, dtype=wide["preferred_element_type"])
    return dy @ kernel.T, dkernel.astype(kernel.dtype), dbias.astype(dy.dtype)


affine.defvjp(_forward, _backward)


class _Weights(nn.Module):
    """Declares `kernel` and `bias` under the layer's own name, as `nn.Dense` does."""

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, d_in: int):
        kernel = self.param("kernel", self.kernel_init, (d_in, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def dense(
    x: jax.Array,
    features: dict[str, int],
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),
) -> list[jax.Array]:
    """Layers that read the same x, as one product; to be called within a compact module.

    Args:
      x: [..., d_in]; parameters are float32 and computation is in the dtype of x.
      features: Name of each layer to its d_out.
      kernel_init: Of the [d_in, d_out] kernels.

    Returns:
      [..., d_out] for each layer.
    """
    weights = [_Weights(n, kernel_init, name=name)(x.shape[-1]) for name, n in features.items()]
    kernels, biases = zip(*weights, strict=True)
    kernel = kernels[0] if len(kernels) == 1 else jnp.concatenate(kernels, axis=1)
    bias = biases[0] if len(biases) == 1 else jnp.concatenate(biases)
    y = affine(x, kernel.astype(x.dtype), bias.astype(x.dtype))
    ends = [sum(list(features.values())[: i + 1]) for i in range(len(features) - 1)]
    return jnp.split(y, ends, axis=-1)
