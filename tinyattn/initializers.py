"""Initial values of kernels, and their scaling with depth ("special initialisation")."""

import math

import flax.linen as nn
import jax

from tinyattn import registry

INITIALIZERS = {
    "lecun_normal": nn.initializers.lecun_normal,
    "xavier_uniform": nn.initializers.xavier_uniform,
    "he_normal": nn.initializers.he_normal,
    "orthogonal": nn.initializers.orthogonal,
    # BERT's: cut at two standard deviations.
    "truncated_normal": lambda: nn.initializers.truncated_normal(0.02),
}
SCALINGS = ("none", "residual")


def kernel(name: str) -> nn.initializers.Initializer:
    """The initialiser of [d_in, d_out] kernels with this name.

    Raises:
      ValueError: No such initialiser.
    """
    if name not in INITIALIZERS:
        raise ValueError(f"no initialiser {name!r}; {registry.nearest(name, INITIALIZERS)}")
    return INITIALIZERS[name]()


def residual(name: str, scaling: str, num_layers: int) -> nn.initializers.Initializer:
    """The initialiser of the kernels that write to the residual stream.

    Args:
      name: Of the initialiser.
      scaling: `none`, or `residual` for 1 / sqrt(2 L): the 2 L writes then add up to the variance of
        one, whatever the depth. Source: Radford et al. 2019, "Language models are unsupervised
        multitask learners", section 2.3.
      num_layers: L.

    Raises:
      ValueError: No such initialiser or scaling.
    """
    if scaling not in SCALINGS:
        raise ValueError(f"no depth scaling {scaling!r}; {registry.nearest(scaling, SCALINGS)}")
    init = kernel(name)
    if scaling == "none":
        return init
    factor = 1 / math.sqrt(2 * num_layers)

    def scaled(rng, shape, dtype=jax.numpy.float32, **kwargs):
        return factor * init(rng, shape, dtype, **kwargs)

    return scaled
