"""Quantised weights: the grid, the rules of their gradients, and the bits that are stored."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import weights
from tinyattn.affine import Factored
from tinyattn.weights import presets, quantize

RNG = jax.random.PRNGKey(3)
KINDS = tuple(quantize.LEVELS)
W = np.random.default_rng(0).standard_normal((12, 6)).astype(np.float32)
SETTINGS = [
    *({"kind": kind} for kind in KINDS),
    {"kind": "ternary", "per": "tensor"},
    {"kind": "int4", "per": "group", "group": 3},
    {"kind": "binary", "per": "group", "group": 3},
    {"kind": "int4", "zero_point": True},
    {"kind": "int8", "per": "tensor", "learned": True},
    {"kind": "ternary", "learned": True},
]


def start(array=W, **fields):
    """Theta of one leaf that is quantised."""
    scheme = weights.build([weights.spec("quantize", **fields)])
    return scheme.init(RNG, {"kernel": array})


def built(theta):
    return np.asarray(weights.fold(theta)["kernel"])


def gradient(theta, dy):
    trainable, rest = weights.partition(theta)

    def loss(trainable):
        return (weights.fold(weights.combine(trainable, rest))["kernel"] * dy).sum()

    return jax.grad(loss)(trainable)["kernel"]


def test_jit_eager_and_what_is_stored_agree_to_the_bit():
    thetas = [start(**fields) for fields in SETTINGS]
    compiled = jax.jit(lambda thetas: [weights.fold(theta) for theta in thetas])(thetas)
    for fields, theta, one in zip(SETTINGS, thetas, compiled, strict=True):
        kept = weights.compact(theta)
        assert type(kept["kernel"]) is quantize.Packed
        want = built(theta).tobytes()
        assert np.asarray(one["kernel"]).tobytes() == want, fields
        assert built(kept).tobytes() == want, fields
        for reference in (weights.reference(theta), weights.reference(kept)):
            np.testing.assert_allclose(reference["kernel"], built(theta), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("kind", "bits"), list(zip(KINDS, (8, 4, 2, 1.6, 1), strict=True)))
def test_bits_of_a_weight(kind, bits):
    for fields, scales in (({"per": "tensor"}, 1), ({}, 6), ({"per": "group", "group": 3}, 24)):
        theta = start(kind=kind, **fields)
        assert weights.sizes(theta).bytes == math.ceil(72 * bits / 8) + 4 * scales
        assert weights.sizes(theta).params == weights.sizes(theta).trainable == 72
    # The numbers count, not the bytes that hold them.
    assert weights.sizes(weights.compact(theta)).params == 72 + 24
    assert len(np.unique(built(start(kind=kind, per="tensor")))) <= quantize.LEVELS[kind]


def test_the_grids():
    array = np.array([[-1.0, 0.5], [0.3, 0.0], [0.1, -0.27], [0.6, 0.125]], np.float32)
    mean = np.abs(array).mean(0)
    np.testing.assert_allclose(
        built(start(array, kind="ternary")), [[-1, 1], [1, 0], [0, -1], [1, 1]] * mean, rtol=1e-6
    )
    np.testing.assert_allclose(
        built(start(array, kind="binary")), [[-1, 1], [1, 1], [1, -1], [1, 1]] * mean, rtol=1e-6
    )
    codes = [[-7, 7], [2, 0], [1, -4], [4, 2]]
    np.testing.assert_allclose(
        built(start(array, kind="int4")), codes * (np.array([1.0, 0.5]) / 7), rtol=1e-6
    )
    # 15 steps from -1 to 0.6: 0.10666; 0.3, 0.1 and 0.6 are 2.81, 0.94 and 5.63 of them.
    np.testing.assert_allclose(
        built(start(array[:, :1], kind="int4", zero_point=True))[:, 0],
        np.array([-9, 3, 1, 6]) * 1.6 / 15,
        rtol=1e-6,
    )


@pytest.mark.parametrize("fields", SETTINGS[:-2], ids=str)
def test_straight_through(fields):
    dy = np.random.default_rng(2).standard_normal(W.shape).astype(np.float32)
    got = gradient(start(**fields), dy)
    np.testing.assert_array_equal(got.latent, dy)
    assert got.scale is None


def test_learned_scales_follow_lsq_by_hand():
    theta = start(np.zeros((4, 2), np.float32), kind="int2", learned=True)
    # Of -2..1: in units of the scale -2.5 and 1.75 are out of range, so is 1, its end.
    ratios = np.array([[-2.5, 0.25], [0.75, 1.0], [-1.25, 1.75], [0.5, -0.5]], np.float32)
    scale = np.array([0.5, 2.0], np.float32)
    node = quantize.FakeQuant(ratios * scale, scale[None, None], "int2", 1, False)
    assert jax.tree.structure(theta["kernel"]) == jax.tree.structure(node)
    np.testing.assert_array_equal(
        built({"kernel": node}), [[-2, 0], [1, 1], [-1, 1], [0, 0]] * scale
    )
    dy = np.array([[1, 2], [3, 4], [5, 6], [7, 8]], np.float32)
    got = gradient({"kernel": node}, dy)
    np.testing.assert_array_equal(got.latent, dy * [[0, 1], [1, 0], [1, 0], [1, 1]])
    # -2 or 1 out of range, else what rounding adds; times 1 / sqrt(4 weights * 1).
    slopes = np.array([[-2, -0.25], [0.25, 1], [0.25, 1], [-0.5, 0.5]])
    np.testing.assert_allclose(got.scale[0], (dy * slopes).sum(0, keepdims=True) / 2, rtol=1e-6)


def test_learned_scales_start_at_twice_the_mean():
    for kind, top in (("int8", 127), ("int4", 7), ("int2", 1), ("ternary", 1)):
        node = start(kind=kind, per="tensor", learned=True)["kernel"]
        np.testing.assert_allclose(node.scale, 2 * np.abs(W).mean() / math.sqrt(top), rtol=1e-6)
        assert node.scale.shape == (1, 1, 1)


@pytest.mark.parametrize("fields", SETTINGS[2:], ids=str)
def test_zeros_stay_zeros(fields):
    theta = start(np.zeros_like(W), **fields)
    for tree in (theta, weights.compact(theta)):
        np.testing.assert_array_equal(built(tree), 0)
    grads = jax.tree.leaves(gradient(theta, W))
    assert all(np.isfinite(g).all() for g in grads)


def test_other_shapes_and_dtypes():
    array = np.random.default_rng(4).standard_normal((4, 2, 3)).astype(np.float32)
    wide = built(start(array, kind="int4", per="group", group=2))
    flat = built(start(array.reshape(4, 6), kind="int4", per="group", group=2))
    np.testing.assert_array_equal(wide.reshape(4, 6), flat)
    half = start(jnp.asarray(W, jnp.bfloat16), kind="int8")
    for theta in (half, weights.compact(half)):
        assert weights.fold(theta)["kernel"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(built(half), built(weights.compact(half)))
    bias = weights.build([weights.spec("quantize", leaves="bias", per="tensor")])
    assert weights.fold(bias.init(RNG, {"bias": W[0]}))["bias"].shape == (6,)


def test_a_base_that_is_never_trained_is_quantised_once():
    lora = presets.lora(rank=1, leaves="kernel$")
    base = weights.spec("quantize", leaves="/w0$", kind="int4")
    scheme = weights.build([lora, base])
    theta = scheme.init(RNG, {"kernel": W})
    node = theta["kernel"].w0
    assert type(node) is quantize.Packed
    np.testing.assert_array_equal(node.build(weights.fold), built(start(kind="int4")))
    found = weights.sizes(theta)
    assert found.trainable == 12 + 6
    assert found.params == found.trainable + W.size + 6
    assert found.bytes == 4 * found.trainable + W.size // 2 + 4 * 6
    assert jax.tree.structure(weights.compact(theta)) == jax.tree.structure(theta)
    # In training the product with the base needs no gradient, and the base is unpacked.
    taken = weights.layers(theta, {"kernel"})["kernel"]
    assert isinstance(taken, Factored)
    np.testing.assert_allclose(taken.kernel, built(theta), atol=1e-6)


def test_what_is_quantised_may_be_a_product():
    """W = Q(W0 + A B), which is stored as whole numbers and not as its factors."""
    lora = presets.lora(rank=1, leaves="latent$")
    scheme = weights.build([weights.spec("quantize", kind="int8"), lora])
    theta = scheme.init(RNG, {"kernel": W})
    np.testing.assert_array_equal(built(theta), built(start()))
    grads = jax.tree.leaves(gradient(theta, W))
    assert weights.sizes(theta).trainable == 18 and any(np.abs(g).max() > 0 for g in grads)
    kept = weights.compact(theta)
    assert type(kept["kernel"]) is quantize.Packed
    np.testing.assert_array_equal(built(kept), built(theta))


@pytest.mark.parametrize("first", ["share", "quantize"])
def test_what_is_shared_is_stored_once(first):
    params = {f"block_{i}": {"kernel": W} for i in range(3)}
    specs = [weights.spec("share"), weights.spec("quantize", kind="binary")]
    theta = weights.build(sorted(specs, key=lambda x: x["name"] != first)).init(RNG, params)
    assert weights.sizes(theta).bytes == 72 // 8 + 4 * 6
    want = built(start(kind="binary"))
    for tree in (theta, weights.compact(theta)):
        for block in weights.fold(tree).values():
            np.testing.assert_array_equal(block["kernel"], want)


def test_weights_that_are_shared_under_several_scales_are_stored_as_they_are_trained():
    params = {f"block_{i}": {"kernel": W} for i in range(3)}
    bits = weights.spec("quantize", kind="int4", learned=True)
    theta = weights.build([bits, weights.spec("share", keep="scale$")]).init(RNG, params)
    assert weights.sizes(theta).bytes == W.nbytes + 3 * 4 * 6
    for x, y in zip(
        *(jax.tree.leaves(weights.fold(t)) for t in (theta, weights.compact(theta))), strict=True
    ):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"kind": "int3"}, "did you mean"),
        ({"per": "row"}, "per='row' is unknown"),
        ({"per": "group"}, "give 1 or more inputs"),
        ({"group": 4}, "and 0 otherwise"),
        ({"kind": "ternary", "zero_point": True}, "set zero_point=False"),
        ({"kind": "binary", "learned": True}, "can be learned"),
        ({"zero_point": True, "learned": True}, "can be learned"),
    ],
)
def test_settings_that_are_refused(fields, words):
    with pytest.raises(ValueError, match="quantize: ") as error:
        weights.spec("quantize", **fields)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("params", "fields", "words"),
    [
        ({"kernel": W}, {"per": "group", "group": 5}, "group=5 must divide the 12 inputs"),
        ({"kernel": W[0]}, {}, "per='tensor'"),
        ({"kernel": weights.Fixed(W)}, {"learned": True}, "learned=False"),
        ({"kernel": W.astype(np.int32)}, {}, "kernel is int32"),
        ({"kernel": weights.Seeded.make(RNG, (2, 2), 1.0)}, {}, "kernel is Seeded"),
    ],
)
def test_leaves_that_are_refused(params, fields, words):
    scheme = weights.build([weights.spec("quantize", **fields)])
    with pytest.raises(ValueError) as error:
        scheme.init(RNG, params)
    assert words in str(error.value)
