"""Affine layers: x W + b in value and gradients, and the kernels they start from."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import affine, initializers

TOLERANCE = {"float32": 1e-6, "float64": 1e-12, "bfloat16": 1e-2}
# Narrower than its output, wider, and as wide; a matrix and a batch of sequences.
SHAPES = [((6,), 3, 5), ((6,), 5, 3), ((2, 4), 3, 5), ((2, 4), 5, 3), ((2, 4), 5, 5)]


def plain(x, kernel, bias):
    return x @ kernel + bias


def draws(shape, d_in, d_out, dtype="float64"):
    rng = np.random.default_rng(0)
    shapes = (*shape, d_in), (d_in, d_out), (d_out,), (*shape, d_out)
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def close(got, want, tolerance):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.abs(got - want).max() <= tolerance * np.abs(want).max()


@pytest.mark.optimised
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("shape", "d_in", "d_out"), SHAPES)
def test_equals_the_product_in_value_and_gradients(shape, d_in, d_out, dtype, x64):
    *exact, weight = draws(shape, d_in, d_out)
    # Exact in each dtype, so that the reference sees the same numbers.
    exact = [x.astype(dtype).astype(jnp.float64) for x in exact]
    weight = weight.astype(dtype)
    inputs = [x.astype(dtype) for x in exact]

    @functools.partial(jax.jit, static_argnums=0)
    def run(function, inputs, weight):
        out, pull = jax.vjp(function, *inputs)
        return out, *pull(weight)

    want = run(plain, exact, weight.astype(jnp.float64))
    got = run(affine.affine, inputs, weight)
    for ours, theirs, like in zip(got, want, [weight, *inputs], strict=True):
        assert ours.dtype == jnp.dtype(dtype) and ours.shape == like.shape
        close(ours, theirs, TOLERANCE[dtype])


@pytest.mark.optimised
def test_sums_of_bfloat16_are_kept_in_float32():
    """Added up in bfloat16, 4,096 ones stop at 256."""
    x, weight = jnp.ones((4096, 3), jnp.bfloat16), jnp.ones((4096, 5), jnp.bfloat16)
    inputs = x, jnp.ones((3, 5), jnp.bfloat16), jnp.ones(5, jnp.bfloat16)
    _, dkernel, dbias = jax.vjp(affine.affine, *inputs)[1](weight)
    assert (dkernel == 4096).all() and (dbias == 4096).all()


@pytest.mark.parametrize(("shape", "d_in", "d_out"), SHAPES[:2])
def test_the_gradient_has_a_gradient(shape, d_in, d_out, x64):
    *inputs, weight = draws(shape, d_in, d_out)

    def penalty(function, *inputs):
        """As a gradient penalty does: the norm of all first gradients."""

        def loss(*inputs):
            return (jnp.sin(function(*inputs)) * weight).sum()

        return sum((g**2).sum() for g in jax.grad(loss, (0, 1, 2))(*inputs))

    got, want = (
        jax.jit(jax.grad(functools.partial(penalty, function), (0, 1, 2)))(*inputs)
        for function in (affine.affine, plain)
    )
    for ours, theirs in zip(got, want, strict=True):
        close(ours, theirs, 1e-12)


class Layers(nn.Module):
    """Three layers that read the same x, as one product or one by one."""

    together: bool
    features = {"query": 6, "key": 4, "value": 2}

    @nn.compact
    def __call__(self, x):
        if self.together:
            return affine.dense(x, self.features)
        return [affine.dense(x, {name: n})[0] for name, n in self.features.items()]


def test_several_layers_are_separate_ones_to_the_gradient():
    x = draws((2, 4), 5, 3, "float32")[0]
    one, many = Layers(True), Layers(False)
    params, want = (jax.jit(module.init)(jax.random.PRNGKey(0), x) for module in (one, many))
    jax.tree.map(np.testing.assert_array_equal, params, want)
    shapes = jax.tree.map(jnp.shape, params["params"])
    assert shapes == {name: {"kernel": (5, n), "bias": (n,)} for name, n in one.features.items()}
    draw = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32), params)

    def loss(module, params, x):
        outs = module.apply(params, x)
        return sum((jnp.sin(i + out)).sum() for i, out in enumerate(outs)), outs

    got, want = (
        jax.jit(jax.grad(functools.partial(loss, module), (0, 1), has_aux=True))(params, x)
        for module in (one, many)
    )
    assert [out.shape for out in got[1]] == [(2, 4, n) for n in one.features.values()]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5), got, want)


class Pair(nn.Module):
    """Ours and flax's layer of the same size."""

    @nn.compact
    def __call__(self, x):
        return affine.dense(x, {"ours": 300})[0] + nn.Dense(300, name="flax")(x)


def test_starts_as_flax_does():
    x = jnp.ones((2, 200), jnp.bfloat16)
    found = jax.jit(Pair().init)(jax.random.PRNGKey(0), x)["params"]
    ours, theirs = found["ours"], found["flax"]
    assert jax.tree.map(jnp.shape, ours) == jax.tree.map(jnp.shape, theirs)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("float32")}
    assert not ours["bias"].any()
    kernels = [np.asarray(layer["kernel"]) for layer in (ours, theirs)]
    for kernel in kernels:
        assert kernel.std() == pytest.approx(200**-0.5, rel=0.02)
        assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
    np.testing.assert_allclose(*[np.quantile(k, [0.0, 0.1, 0.9, 1.0]) for k in kernels], rtol=0.03)
    assert (kernels[0] != kernels[1]).any()


# Standard deviation of a [d_in, d_out] kernel; BERT's is that of a normal cut at two of its own.
SPREADS = {
    "lecun_normal": lambda d_in, d_out: d_in**-0.5,
    "xavier_uniform": lambda d_in, d_out: (2 / (d_in + d_out)) ** 0.5,
    "he_normal": lambda d_in, d_out: (2 / d_in) ** 0.5,
    "orthogonal": lambda d_in, d_out: max(d_in, d_out) ** -0.5,
    "truncated_normal": lambda d_in, d_out: 0.02 * 0.8796,
}


@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_initial_spread_is_as_named(name):
    # An orthogonal matrix has this spread at any size, and a large one takes seconds.
    d_in, d_out = shape = (20, 30) if name == "orthogonal" else (200, 300)
    plain, scaled = (initializers.residual(name, how, 8) for how in initializers.SCALINGS)
    named, kernel, small = (
        np.asarray(init(jax.random.PRNGKey(0), shape))
        for init in (initializers.kernel(name), plain, scaled)
    )
    np.testing.assert_array_equal(kernel, named)
    assert kernel.std() == pytest.approx(SPREADS[name](d_in, d_out), rel=0.02)
    assert abs(kernel.mean()) < 5 * kernel.std() / np.sqrt(kernel.size)
    # Two writes in each of 8 layers add up to the variance of one.
    np.testing.assert_array_equal(small, kernel / 4)
    if name == "orthogonal":
        np.testing.assert_allclose(kernel @ kernel.T, np.eye(20), atol=1e-5)
    if name == "xavier_uniform":
        assert np.abs(kernel).max() <= (6 / 500) ** 0.5
    if name == "truncated_normal":
        assert 0.039 < np.abs(kernel).max() <= 0.04


def test_unknown_initialisers_and_scalings_are_refused():
    with pytest.raises(ValueError, match="no initialiser 'lecun'; did you mean 'lecun_normal'"):
        initializers.kernel("lecun")
    with pytest.raises(ValueError, match="no depth scaling 'residul'; did you mean 'residual'"):
        initializers.residual("he_normal", "residul", 2)
