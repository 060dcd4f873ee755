"""Pruning of single weights, N of M and blocks: which go and when, and what a file has of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import weights
from tinyattn.weights import prune

RNG = jax.random.PRNGKey(3)


def spec(**fields):
    return weights.spec("prune", **fields)


def pruned(array, **fields):
    """The scheme, and theta of one kernel."""
    scheme = weights.build([spec(**fields)])
    return scheme, scheme.init(RNG, {"kernel": jnp.asarray(array, jnp.float32)})


def zeros(theta):
    return np.asarray(weights.fold(theta)["kernel"]) == 0


def matrix(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(
    "fields",
    [
        {"sparsity": 0.3},
        {"pattern": "n:m", "score": "random"},
        {"pattern": "blocks", "rows": 2, "columns": 3, "score": "movement", "end": 1},
        {"sparsity": 0.0},
    ],
)
@pytest.mark.parametrize("shape", [(8, 6), (4, 2, 9)])
def test_equals_reference_and_what_a_file_has(fields, shape):
    scheme, theta = pruned(matrix(*shape), **fields)
    theta = scheme.update(theta, 1)
    built = scheme.build(theta)["kernel"]
    np.testing.assert_array_equal(built, weights.reference(theta)["kernel"])
    np.testing.assert_array_equal(built, weights.fold(weights.compact(theta))["kernel"])
    at = zeros(theta)
    np.testing.assert_array_equal(built, np.where(at, 0, matrix(*shape)))
    units = at.size // 6 if fields.get("pattern") == "blocks" else at.size
    want = round(fields.get("sparsity", 0.5) * units) * at.size // units
    assert at.sum() == want
    assert weights.sizes(theta).bytes == 4 * (at.size - want) + -(-units // 8)


@pytest.mark.parametrize(
    ("kind", "each", "fields", "mask"),
    [("int4", 2, {}, 6), ("binary", 8, {"pattern": "blocks", "rows": 2, "columns": 1}, 3)],
)
def test_a_file_has_the_codes_of_what_is_kept(kind, each, fields, mask):
    """Chained to quantisation: of 48 weights 24 are kept, `each` of them to a byte."""
    rounded = weights.spec("quantize", leaves="weight$", kind=kind)
    chain = weights.build([spec(**fields), rounded])
    theta = chain.update(chain.init(RNG, {"kernel": matrix(8, 6)}), 0)
    built, kept = jax.jit(chain.build)(theta), weights.compact(theta)
    assert (built["kernel"] == 0).sum() >= 24
    again = jax.jit(weights.fold)(weights.regenerate(weights.strip(kept)))
    for found in (again, weights.reference(kept)):
        np.testing.assert_array_equal(found["kernel"], built["kernel"])
    assert weights.sizes(theta).bytes == 24 // each + mask + 4 * 6


def test_ties_leave_the_right_number():
    for sparsity, left in ((0.5, 8), (0.3, 11), (0.99, 0)):
        at = zeros(pruned(np.ones((4, 4)), sparsity=sparsity)[1])
        assert (~at).sum() == left and (~at.ravel()[:left]).all()


def test_two_of_four_keeps_the_largest_along_the_input():
    kernel = [[1, -8], [-4, 2], [3, 5], [2, 7], [0.1, 1], [0.2, 1], [-0.3, 1], [0.4, 1]]
    want = [[0, 1], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1], [1, 0], [1, 0]]
    np.testing.assert_array_equal(zeros(pruned(kernel, pattern="n:m")[1]), 1 - np.array(want))
    at = zeros(pruned(kernel, pattern="n:m", keep=1, sparsity=0.75)[1])
    np.testing.assert_array_equal(np.argwhere(~at), [[0, 1], [1, 0], [4, 1], [7, 0]])


def test_blocks_go_by_their_norm():
    # Norms 5, 6, 0.2 and 5.1: by sums of absolute numbers the second would go, not the first.
    kernel = [[3, 0, 6, 0], [0, 4, 0, 0], [0.1, 0.1, 3, 3], [0.1, 0.1, 2, 2]]
    at = zeros(pruned(kernel, pattern="blocks", rows=2, columns=2)[1])
    want = np.kron([[1, 0], [1, 0]], np.ones((2, 2))) + (np.array(kernel) == 0) > 0
    np.testing.assert_array_equal(at, want)


def test_random_masks_grow():
    """Of one seed: what was pruned at a step stays so, and another seed prunes something else."""
    scheme, theta = pruned(matrix(8, 6), score="random", end=4)
    early, late = (zeros(scheme.update(theta, step)) for step in (2, 4))
    assert (late >= early).all() and early.sum() == 21 and late.sum() == 24
    other = scheme.init(jax.random.PRNGKey(4), {"kernel": jnp.asarray(matrix(8, 6))})
    assert (zeros(scheme.update(other, 4)) != late).any()


def test_the_schedule_is_that_of_the_paper():
    settings = prune.Config(sparsity=0.8, begin=100, end=300, every=50)
    for step, share in (
        (99, 0.0),
        (100, 0.0),
        (150, 0.8 - 0.8 * 0.75**3),
        (199, 0.8 - 0.8 * 0.75**3),
        (250, 0.8 - 0.8 * 0.25**3),
        (300, 0.8),
        (400, 0.8),
    ):
        assert prune.zeros(settings, 8000, step) == round(share * 10000), step
    late = prune.Config(begin=5, end=5)
    assert [int(prune.zeros(late, 8, step)) for step in (0, 4, 5, 9)] == [0, 0, 8, 8]


def test_masks_are_remade_by_the_schedule_within_a_scan():
    scheme, theta = pruned(matrix(8, 6), sparsity=0.5, begin=2, end=6, every=2)

    def step(theta, t):
        # Each step one weight becomes the largest, whether it was masked or not.
        kernel = theta["kernel"].weight
        kernel = jnp.where(jnp.arange(48).reshape(8, 6) == t, 100.0, kernel * 0.9)
        rest = weights.partition(theta)[1]
        trainable = jax.tree.map(lambda x: kernel, weights.partition(theta)[0])
        theta = scheme.update(weights.combine(trainable, rest), t)
        return theta, (theta["kernel"].mask.kept.value, kernel)

    last, (kept, kernels) = jax.jit(lambda x: jax.lax.scan(step, x, jnp.arange(9)))(theta)
    kept, kernels = np.asarray(kept)[:, 0], np.asarray(kernels).reshape(9, 48)
    counts = [0, 0, 0, 0, 21, 21, 24, 24, 24]
    assert [int((~k).sum()) for k in kept] == counts
    for t in (4, 6):
        order = np.argsort(-np.abs(kernels[t]), kind="stable")
        np.testing.assert_array_equal(np.flatnonzero(kept[t]), np.sort(order[: 48 - counts[t]]))
    for t in (5, 7, 8):
        np.testing.assert_array_equal(kept[t], kept[t - 1])
    # What was left out is made up for, and a theta that is done stays as it is.
    assert zeros(scheme.update(theta, 50)).sum() == 24
    jax.tree.map(np.testing.assert_array_equal, scheme.update(last, 50), last)


def test_a_pruned_weight_has_no_gradient_and_may_come_back():
    scheme, theta = pruned([[1.0, 2.0, 3.0, 4.0]], end=4, every=2)
    theta = scheme.update(theta, 2)
    leaf = jax.grad(lambda t: (scheme.build(t)["kernel"] * 7).sum(), allow_int=True)(theta)
    np.testing.assert_array_equal(leaf["kernel"].weight, [[0, 0, 7, 7]])
    trainable, rest = weights.partition(theta)
    theta = weights.combine(jax.tree.map(lambda x: x[:, ::-1], trainable), rest)
    np.testing.assert_array_equal(zeros(scheme.update(theta, 4)), [[0, 0, 1, 1]])


def test_movement_scores_get_the_gradient_times_the_weight():
    """Of what is masked as well, so that it may come back; those of a block get the sum."""
    G, kernel = matrix(4, 6, seed=1), matrix(4, 6)
    for fields in ({}, {"pattern": "blocks", "rows": 2, "columns": 3}):
        scheme, theta = pruned(kernel, score="movement", end=2, **fields)
        trainable, rest = weights.partition(scheme.update(theta, 2))

        def loss(trainable, scheme=scheme, rest=rest):
            return (scheme.build(weights.combine(trainable, rest))["kernel"] * G).sum()

        got = jax.grad(loss)(trainable)["kernel"]
        want = kernel * G
        if fields:
            want = want.reshape(2, 2, 2, 3).sum((1, 3))
        np.testing.assert_allclose(got.mask.scores.ravel(), want.ravel(), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            got.weight, np.where(zeros(weights.combine(trainable, rest)), 0, G)
        )
        # After a step of gradient descent the masks keep what the loss wants to grow.
        moved = jax.tree.map(lambda x, g: x - g, trainable, jax.grad(loss)(trainable))
        scores = np.asarray(moved["kernel"].mask.scores)
        kept = scheme.update(weights.combine(moved, weights.partition(theta)[1]), 2)
        kept = np.asarray(kept["kernel"].mask.kept.value)
        assert scores[kept].min() > scores[~kept].max()


def test_chains_with_delta():
    kernel = matrix(8, 6)
    both = weights.presets.both(leaves="kernel$", w0="init")
    # V alone: what is added to W0 is sparse, W0 is not.
    scheme = weights.build([both, spec(leaves="kernel/terms/0/v$", end=1)])
    theta = scheme.init(RNG, {"kernel": kernel})
    trainable, rest = weights.partition(theta)
    trainable = jax.tree.map(lambda x: jnp.asarray(matrix(*x.shape, seed=1)), trainable)
    theta = scheme.update(weights.combine(trainable, rest), 1)
    d, v = matrix(1, 6, seed=1), matrix(8, 6, seed=1)
    least = np.sort(np.abs(v), axis=None)[24]
    want = kernel + d * np.where(np.abs(v) < least, 0, v)
    np.testing.assert_allclose(scheme.build(theta)["kernel"], want, atol=1e-6)
    assert weights.sizes(theta).bytes == 4 * (48 + 6 + 24) + 6

    # The whole of W0 + D ⊙ V: judged by its sum, and stored as the sum where that is smaller.
    late = weights.presets.both(leaves="kernel/weight$", w0="init")
    scheme = weights.build([spec(end=1), late])
    trainable, rest = weights.partition(scheme.init(RNG, {"kernel": kernel}))
    trainable = jax.tree.map(lambda x: jnp.asarray(matrix(*x.shape, seed=1)), trainable)
    theta = jax.jit(scheme.update)(weights.combine(trainable, rest), 1)
    whole = kernel + d * v
    want = np.where(np.abs(whole) < np.sort(np.abs(whole), axis=None)[24], 0, whole)
    np.testing.assert_allclose(scheme.build(theta)["kernel"], want, atol=1e-6)
    assert weights.sizes(theta).bytes == 4 * 24 + 6
    np.testing.assert_array_equal(
        weights.fold(weights.compact(theta))["kernel"], scheme.build(theta)["kernel"]
    )


def test_what_has_no_meaning_is_refused_with_the_reason():
    for fields, message in (
        ({"sparsity": 1.0}, r"sparsity=1.0 must be a share in \[0, 1\)"),
        ({"score": "magnitud"}, "did you mean 'magnitude'"),
        ({"rows": 0}, "rows=0"),
        ({"pattern": "n:m", "keep": 4}, "keep=4 must be in 1..3"),
        ({"pattern": "n:m", "keep": 1}, "give sparsity=0.75"),
        ({"begin": 4, "end": 9, "every": 2}, "every=2 must divide"),
        ({"score": "movement"}, "give an end above 0"),
        ({"pattern": "heads"}, "need units"),
        ({"judges": "("}, "is no regular expression"),
    ):
        with pytest.raises(ValueError, match=f"prune: .*{message}"):
            prune.Config(**fields)
    delta = weights.presets.both(leaves="kernel$", w0="seed")
    for specs, message in (
        ([spec(pattern="n:m")], r"of=4 must divide the inputs of kernel, \(6, 4\)"),
        ([spec(pattern="blocks")], "blocks of 4x4 must fill kernel"),
        ([delta, spec()], "let the other scheme have kernel/weight"),
        ([delta, spec(leaves="w0$")], "w0 is seeded"),
        ([spec(), spec(leaves="kept$")], "holds bool"),
        ([spec(leaves="kernl$")], "no leaf matches"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.build(specs).init(RNG, {"kernel": np.ones((6, 4), np.float32)})
