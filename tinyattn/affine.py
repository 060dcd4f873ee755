"""Affine layers, x W + b: products in the order that they run fastest, and kernels kept in factors.

XLA on a CPU copies one operand of x^T dy into its transpose. JAX's own rule always has it copy dy; here
it is the narrower of the two. The values are the same. A kernel that nothing trains gets no gradient: its
product x^T dy, a third of the work of a step, is not run.
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import activations


@jax.custom_vjp
def affine(x: jax.Array, kernel, bias) -> jax.Array:
    """x [..., d_in] times kernel [d_in, d_out] plus bias [d_out], all of one dtype.

    Kernel and bias may be tuples: of layers that read the same x, side by side in the output.
    """
    return x @ _joined(kernel, 1) + _joined(bias, 0)


def _joined(arrays, axis: int) -> jax.Array:
    if not isinstance(arrays, tuple):
        return arrays
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Saved:
    """What the backward pass needs; x and kernel only where their product is asked for."""

    x: jax.Array | None
    kernel: jax.Array | tuple | None
    # Widths of the kernels, and which of them are asked for.
    widths: tuple[int, ...] = dataclasses.field(metadata={"static": True})
    asked: tuple[bool, ...] = dataclasses.field(metadata={"static": True})
    one: bool = dataclasses.field(metadata={"static": True})


def _forward(x, kernel, bias):
    kernels = kernel if isinstance(kernel, tuple) else (kernel,)
    asked = tuple(k.perturbed for k in kernels)
    values = jax.tree.map(lambda primal: primal.value, (x, kernel, bias), is_leaf=_is_primal)
    saved = _Saved(
        values[0] if any(asked) else None,
        values[1] if x.perturbed else None,
        tuple(k.value.shape[1] for k in kernels),
        asked,
        not isinstance(kernel, tuple),
    )
    return affine(*values), saved


def _is_primal(x) -> bool:
    return hasattr(x, "perturbed")


def _backward(saved, dy):
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    drows = dy.reshape(-1, dy.shape[-1])
    dx = None if saved.kernel is None else dy @ _joined(saved.kernel, 1).T
    ends = [sum(saved.widths[: i + 1]) for i in range(len(saved.widths))]
    parts = list(zip([0, *ends], ends, strict=False))
    dkernels = [None] * len(parts)
    for first, last in _runs(saved.asked):
        # Neighbours that are asked for are one product.
        start = parts[first][0]
        both = _gradient(saved.x, drows[:, start : parts[last][1]], wide).astype(dy.dtype)
        for i in range(first, last + 1):
            dkernels[i] = both[:, parts[i][0] - start : parts[i][1] - start]
    dbias = drows.sum(0, dtype=wide).astype(dy.dtype)
    if saved.one:
        return dx, dkernels[0], dbias
    return dx, tuple(dkernels), tuple(dbias[start:end] for start, end in parts)


def _runs(asked):
    """First and last of each run of True."""
    first = None
    for i, wanted in enumerate((*asked, False)):
        if wanted and first is None:
            first = i
        if not wanted and first is not None:
            yield first, i - 1
            first = None


def _gradient(x, drows, wide):
    """x^T dy, [d_in, d_out]."""
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[1] <= drows.shape[1]:
        return jnp.einsum("ti,to->io", rows, drows, preferred_element_type=wide)
    return jnp.einsum("to,ti->oi", drows, rows, preferred_element_type=wide).T


affine.defvjp(_forward, _backward, symbolic_zeros=True)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Factored:
    """A kernel that a layer takes in factors: gain_in * base * gain_out + Σ a b, [d_in, d_out].

    Attributes:
      base: [d_in, d_out]; None is zero.
      gain_in: [d_in, 1], what scales the base's rows; None is 1.
      gain_out: [1, d_out], what scales its columns; None is 1.
      pairs: Of a [d_in, R] and b [R, d_out].
    """

    base: jax.Array | None
    gain_in: jax.Array | None
    gain_out: jax.Array | None
    pairs: tuple[tuple[jax.Array, jax.Array], ...] = ()

    def astype(self, dtype) -> "Factored":
        return jax.tree.map(lambda x: x.astype(dtype), self)

    @property
    def kernel(self) -> jax.Array:
        """[d_in, d_out], multiplied out."""
        parts = [a @ b for a, b in self.pairs]
        if self.base is not None:
            gains = [g for g in (self.gain_in, self.gain_out) if g is not None]
            parts.append(math.prod(gains, start=self.base))
        return sum(parts[1:], parts[0])

    def times(self, x: jax.Array, bias: jax.Array) -> jax.Array:
        """x [..., d_in] times the kernel plus bias [d_out], factor by factor."""
        y = bias
        if self.base is not None:
            scaled = x if self.gain_in is None else x * self.gain_in[:, 0]
            if self.gain_out is None:
                y = affine(scaled, self.base, bias)
            else:
                y = affine(scaled, self.base, jnp.zeros_like(bias)) * self.gain_out[0] + bias
        for a, b in self.pairs:
            y += _product(_product(x, a), b)
        return y


def _product(x, kernel):
    return affine(x, kernel, jnp.zeros(kernel.shape[1], kernel.dtype))


def multiplied(params):
    """The params with every `Factored` kernel multiplied out."""
    is_factored = lambda x: isinstance(x, Factored)  # noqa: E731
    return jax.tree.map(lambda x: x.kernel if is_factored(x) else x, params, is_leaf=is_factored)


class Weights(nn.Module):
    """Declares `kernel` and `bias` under the layer's own name, as `nn.Dense` does."""

    features: int
    kernel_init: nn.initializers.Initializer

    @nn.compact
    def __call__(self, d_in: int):
        kernel = self.get_variable("params", "kernel")
        if not isinstance(kernel, Factored):
            kernel = self.param("kernel", self.kernel_init, (d_in, self.features))
        return kernel, self.param("bias", nn.initializers.zeros, (self.features,))


def dense(
    x: jax.Array,
    features: dict[str, int],
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),
) -> list[jax.Array]:
    """Layers that read the same x, as one product; to be called within a compact module.

    Args:
      x: [..., d_in], which `activations` may round; parameters are float32 and computation is in the dtype
        of x.
      features: Name of each layer to its d_out.
      kernel_init: Of the [d_in, d_out] kernels.

    Returns:
      [..., d_out] for each layer.
    """
    weights = [Weights(n, kernel_init, name=name)(x.shape[-1]) for name, n in features.items()]
    x = activations.rounded(x)
    kernels, biases = (tuple(w.astype(x.dtype) for w in own) for own in zip(*weights, strict=True))
    if any(isinstance(kernel, Factored) for kernel in kernels):
        return [
            k.times(x, b) if isinstance(k, Factored) else affine(x, k, b)
            for k, b in zip(kernels, biases, strict=True)
        ]
    y = affine(x, kernels, biases)
    ends = [sum(list(features.values())[: i + 1]) for i in range(len(features) - 1)]
    return jnp.split(y, ends, axis=-1)


def _dense(call, args, kwargs, context):
    """Stands before every method of Flax: an `nn.Dense` whose kernel is factored takes it so."""
    module = context.module
    if type(module) is not nn.Dense or context.method_name != "__call__":
        return call(*args, **kwargs)
    kernel = module.get_variable("params", "kernel")
    if not isinstance(kernel, Factored):
        return call(*args, **kwargs)
    (x,) = args
    bias = module.get_variable("params", "bias") if module.use_bias else None
    dtype = nn.dtypes.canonicalize_dtype(x, *jax.tree.leaves((kernel, bias)), dtype=module.dtype)
    if bias is None:
        bias = jnp.zeros(module.features, dtype)
    return kernel.astype(dtype).times(x.astype(dtype), bias.astype(dtype))


def apply(module: nn.Module, params, *args, **kwargs):
    """`module.apply` with params of which some kernels may be `Factored`, for layers of `takes`."""
    with nn.intercept_methods(_dense):
        return module.apply({"params": params}, *args, **kwargs)


def takes(module: nn.Module, *args, **kwargs) -> frozenset[str]:
    """Paths of the kernels that may be given to `apply` in factors: ours, and those of `nn.Dense`.

    The module is traced as by `init`, with the same arguments; nothing is computed.
    """
    return traced(module, *args, **kwargs)[1]


def traced(module: nn.Module, *args, **kwargs) -> tuple[Any, frozenset[str]]:
    """Shapes of a module's params, and what `takes` finds, by one trace."""
    found = set()

    def record(call, args, kwargs, context):
        own = context.module
        if type(own) in (nn.Dense, Weights) and context.method_name == "__call__":
            found.add("/".join((*own.path, "kernel")))
        return call(*args, **kwargs)

    with nn.intercept_methods(record):
        shapes = jax.eval_shape(lambda: module.init(jax.random.PRNGKey(0), *args, **kwargs))
    return shapes["params"], frozenset(found)
