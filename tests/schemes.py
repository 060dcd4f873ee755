"""What the tests of weight schemes have in common: small params, and what is asked of every theta."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tinyattn import attention, model, weights
from tinyattn.weights import _theta

L, D, F = 4, 8, 12
IDS = np.array([[0, 3, 6, 1, 2], [5, 4, 0, 6, 3]], np.int32)
RNG, OTHER = jax.random.PRNGKey(7), jax.random.PRNGKey(8)


class FlaxBlock(nn.Module):
    """Flax's own attention, whose kernels have three axes and whose biases two."""

    @nn.compact
    def __call__(self, x):
        y = nn.LayerNorm(name="norm")(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
        return x + nn.Dense(D, name="down")(nn.gelu(nn.Dense(F, name="up")(x)))


class ConvBlock(nn.Module):
    """A convolution, and attention to channels (squeeze and excite): no block of a Transformer."""

    @nn.compact
    def __call__(self, x):
        x = x + nn.gelu(nn.Conv(D, (3,), name="mix")(x))
        gate = nn.Dense(D, name="attention")(x.mean(axis=1, keepdims=True))
        return x * nn.sigmoid(gate)


class Stack(nn.Module):
    block: type

    @nn.compact
    def __call__(self, ids):
        x = nn.Embed(7, D, name="tokens")(ids)
        for i in range(L):
            x = self.block(name=f"block_{i}")(x)
        return x


def encoder(**fields):
    heads = attention.spec("dense", num_heads=2)
    sizes = {"width": D, "num_layers": L, "ffn_width": F, "num_classes": 3, "max_length": 5}
    return model.build(model.spec(inputs="tokens", vocab_size=7, attention=heads, **sizes | fields))


NETS = {
    "encoder": encoder,
    "flax": functools.partial(Stack, FlaxBlock),
    "conv": functools.partial(Stack, ConvBlock),
}


@functools.cache
def shapes(net):
    return jax.eval_shape(NETS[net]().init, RNG, IDS)["params"]


def params_of(net, seed=0):
    """Random params of a network, none of them zero and no two alike."""
    rng = np.random.default_rng(seed)

    def draw(x):
        return (rng.standard_normal(x.shape) / np.sqrt(x.shape[0])).astype(x.dtype)

    return jax.tree.map(draw, shapes(net))


SMALL = {
    f"block_{i}": {
        part: {"kernel": jnp.full((3, 2), i + 1.0), "bias": jnp.full(2, i + 0.5)}
        for part in ("attention", "ffn")
    }
    for i in range(L)
}
P = {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)}


def scheme(*specs):
    return weights.build(specs)


def moved(theta, seed=5):
    """Theta with its trainable leaves away from where they start."""
    trainable, rest = weights.partition(theta)
    leaves, treedef = jax.tree.flatten(trainable)
    rng = np.random.default_rng(seed)
    # By NumPy: JAX would compile a sum for every shape.
    leaves = [np.asarray(x) + (0.3 * rng.standard_normal(x.shape)).astype(x.dtype) for x in leaves]
    return weights.combine(jax.tree.unflatten(treedef, leaves), rest)


def put(theta, new):
    """Theta with the leaves at these paths replaced."""
    assert set(new) <= set(weights.leaves(theta)), set(new) - set(weights.leaves(theta))
    return _theta.replace_leaves(theta, new)


def normal_like(tree, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(x.dtype), tree)


def dot(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(np.vdot(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs)


def gradients(theta, cotangents):
    """Of the trained leaves of theta, from those of params."""
    trainable, rest = weights.partition(theta)
    return jax.vjp(lambda t: weights.fold(weights.combine(t, rest)), trainable)[1](cotangents)[0]


def assert_trees(check, a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), y in zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True
    ):
        check(x, y, err_msg=jax.tree_util.keystr(path))


assert_equal = functools.partial(assert_trees, np.testing.assert_array_equal)
assert_close = functools.partial(
    assert_trees, functools.partial(np.testing.assert_allclose, atol=1e-6, rtol=1e-6)
)


def estimated(theta):
    """Paths of the nodes whose gradient is a rule and not the derivative of what they build."""
    return tuple(
        path for path, x in _theta.places(theta).items() if _theta.is_node(x) and x.estimated
    )


def check_built(theta, params, fold=weights.fold):
    """The params that theta builds are of the model, and are those of the reference."""
    built = fold(theta)
    assert jax.tree.structure(built) == jax.tree.structure(params)
    for got, want in zip(jax.tree.leaves(built), jax.tree.leaves(params), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
    assert_close(built, weights.reference(theta))


def check_kept(theta, fold=weights.fold):
    """A file builds the same params to the bit, and is as large as `sizes` says."""
    kept, found = weights.compact(theta), weights.sizes(theta)
    stripped = weights.strip(kept)
    stored = [weights.stored(leaf) for leaf in weights.leaves(stripped).values()]
    assert found.bytes == sum(x.nbytes for x in stored if x is not None)
    trained = jax.tree.leaves(weights.partition(theta)[0])
    assert found.trainable == sum(x.size for x in trained)
    again = weights.regenerate(stripped)
    built = [fold(jax.tree.map(jnp.asarray, x)) for x in (again, weights.settle(theta))]
    assert_equal(*built)


def check_gradient(theta, gradient, cotangents):
    """The reference's derivative along a direction, in float64, against a gradient."""
    rule = estimated(theta)
    double = functools.partial(jax.tree.map, lambda x: np.asarray(x, np.float64))
    trainable, rest = weights.partition(theta)
    trainable, rest = double(trainable), jax.tree.map(np.asarray, rest)

    def along(direction, h):
        shifted = jax.tree.map(lambda x, u: x + h * u, trainable, direction)
        return dot(weights.reference(weights.combine(shifted, rest)), cotangents)

    u = jax.tree_util.tree_map_with_path(
        lambda path, x: (
            x * (not jax.tree_util.keystr(path, simple=True, separator="/").startswith(rule))
        ),
        normal_like(trainable, 2),
    )
    slope = (along(u, 1e-4) - along(u, -1e-4)) / 2e-4
    np.testing.assert_allclose(dot(gradient, u), slope, rtol=1e-4, atol=1e-4)
