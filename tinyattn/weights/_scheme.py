"""The contract of a weight scheme, and composition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from tinyattn.weights import _fold, _theta

Theta = Any
Params = Any


def keep(theta: Theta, step: jax.Array) -> Theta:
    """The `update` of a scheme that does nothing between steps."""
    return theta


class Scheme(NamedTuple):
    """Pure functions between what is stored and what is used.

    Attributes:
      init: (rng, params) -> theta, from a model's fresh or pretrained params, or from the theta of the
        scheme before. Runs on the host.
      update: (theta, step) -> theta, between steps; the identity for most.
    """

    init: Callable[[jax.Array, Params], Theta]
    update: Callable[[Theta, jax.Array], Theta] = keep

    def build(self, theta: Theta) -> Params:
        """The params: differentiable and jittable. Folding for inference is this, called once.

        It is the same for all schemes, for the nodes of theta know what they stand for.
        """
        return _fold.fold(theta)


def identity() -> Scheme:
    """Stores the params as they are."""
    return Scheme(init=lambda rng, params: params)


def chain(*schemes: Scheme) -> Scheme:
    """Each scheme stores what the one before it would have stored.

    `chain(delta, share)` turns kernels into W0, D and V and then shares leaves of those, by their own
    paths; `chain(share, delta)` shares kernels and then reparameterises what is left of them. What a
    training pass moves by itself, such as a batch norm's running mean, is kept from all of them.
    """

    def init(rng, params):
        params, moved = _theta.apart(params)
        for i, scheme in enumerate(schemes):
            params = scheme.init(jax.random.fold_in(rng, i), params)
        return _theta.together(params, moved)

    def update(theta, step):
        for scheme in schemes:
            theta = scheme.update(theta, step)
        return theta

    return Scheme(init, update)
