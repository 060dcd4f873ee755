"""What pieces of queries cost: their backward pass grows with the length as their forward pass does."""

import jax
import jax.numpy as jnp
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention._core import pieces

LENGTHS = 16384, 65536


def growth(function):
    """Element operations at the longer length over those at the shorter, forward and with the gradient."""
    found = []
    for length in LENGTHS:
        call, given = function(length)
        both = [call, jax.grad(lambda *x, call=call: call(*x).sum(), tuple(range(len(given))))]
        found.append([cost.count(f, *given).elementwise for f in both])
    return [b / a for a, b in zip(*found, strict=True)]


def of_length(name):
    """`attend` of a variant with one head, and the shapes of what it takes, by length."""
    module, config = attention.build(attention.spec(name, num_heads=1))

    def of(length):
        shapes = attention.shapes(module, config, D=16, B=1, T=length)

        def call(*given):
            named = dict(zip(shapes, given, strict=True))
            return module.attend(config, **named, mask=masks.causal())

        return call, [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes.values()]

    return of


@pytest.mark.parametrize("name", ["topk", "dsa", "moba", "nsa", "lsh", "sigmoid", "talking"])
def test_the_gradient_grows_as_the_output_does(name):
    forward, both = growth(of_length(name))
    assert both < 1.002 * forward


def test_what_is_gathered_costs_as_much_at_any_length():
    """Pieces of one size that each gather as much: four times as many are four times the work."""
    t, k = 8, 3

    def of(length):
        def piece(i, query, source):
            at = jnp.broadcast_to(i + jnp.arange(k), (1, 1, t, k))
            (keys, values), source = source.take(at)
            weights = jax.nn.softmax(jnp.einsum("btkmh,bktjh->bkmtj", query, keys))
            return jnp.einsum("bkmtj,bktjh->btkmh", weights, values), source

        def call(query, key, value):
            return pieces.gathering(piece, query, (key, value), 1, length // t, t)

        heads = (1, length, 2, 4), (1, 1, length, 4), (1, 1, length, 4)
        return call, [jax.ShapeDtypeStruct(shape, "float32") for shape in heads]

    forward, both = growth(of)
    assert forward == pytest.approx(4, rel=1e-3) and both == pytest.approx(4, rel=1e-3)
