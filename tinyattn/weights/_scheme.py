"""The contract of a weight scheme, and composition."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from tinyattn.weights import _theta

Theta = Any
Params = Any


class Scheme(NamedTuple):
    """Pure functions between what is stored and what is used.

    Attributes:
      init: (rng, params) -> theta, from a model's fresh or pretrained params. Runs on the host.
      build: theta -> params; differentiable and jittable, called inside the loss. Folding for
        inference is this same function, called once.
      update: (theta, step) -> theta, between steps; the identity for most.
    """

    init: Callable[[jax.Array, Params], Theta]
    build: Callable[[Theta], Params]
    update: Callable[[Theta, jax.Array], Theta]


def keep(theta: Theta, step: jax.Array) -> Theta:
    """The `update` of a scheme that does nothing between steps."""
    return theta


def identity() -> Scheme:
    """Stores the params as they are."""
    return Scheme(init=lambda rng, params: params, build=lambda theta: theta, update=keep)


def chain(*schemes: Scheme) -> Scheme:
    """Each scheme stores what the one before it would have stored.

    `chain(delta, share)` turns kernels into W0, D and V and then shares leaves of those, by their own
    paths; `chain(share, delta)` shares kernels and then reparameterises what is left of them.
    """

    def init(rng, params):
        for i, scheme in enumerate(schemes):
            params = scheme.init(jax.random.fold_in(rng, i), params)
        return params

    def build(theta):
        for scheme in reversed(schemes):
            theta = scheme.build(theta)
        return jax.tree.map(_theta.value, theta, is_leaf=_theta.is_kind)

    def update(theta, step):
        for scheme in schemes:
            theta = scheme.update(theta, step)
        return theta

    return Scheme(init, build, update)
