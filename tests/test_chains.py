"""Schemes one after the other: what is stored, in which order, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemes import RNG, SMALL, D, F, L, assert_equal, moved, params_of, put, scheme

from tinyattn import weights

COL = ({"d": {"kind": "col", "value": 1.0}},)


def blocks():
    """Shapes of the kernels of one layer of the encoder."""
    return [(D, D)] * 4 + [(D, F), (F, D)]


@pytest.mark.parametrize("w0", ["init", "seed"])
def test_sizes_of_delta_then_share_where_each_layer_keeps_its_d(w0):
    params = params_of("encoder")
    kernels = weights.presets.both(w0=w0)
    theta = scheme(kernels, weights.spec("share", keep="/d$")).init(RNG, params)
    matrix = sum(a * b for a, b in blocks())
    row = sum(b for _, b in blocks())
    small = 4 * D + F + D + 4 * D  # biases, and the scales and biases of two norms
    around = sum(x.size for p, x in weights.leaves(params).items() if not p.startswith("block"))
    found = weights.sizes(theta)
    assert found.params == 2 * matrix + small + L * row + around
    assert found.trainable == found.params - matrix
    base = 4 * matrix if w0 == "init" else 16 * len(blocks())
    assert found.bytes == base + 4 * found.trainable


def test_order_in_a_chain():
    params = params_of("encoder")
    kernels, share = weights.presets.both(), weights.spec("share")
    tied = scheme(share, kernels)
    last = scheme(kernels, share)
    own = scheme(kernels, weights.spec("share", keep="/d$"))
    thetas = [parts.init(RNG, params) for parts in (tied, last, own)]
    # Sharing all of a delta is a delta of what is shared.
    assert weights.sizes(thetas[0]) == weights.sizes(thetas[1])
    assert_equal(tied.build(thetas[0]), last.build(thetas[1]))
    paths = [set(weights.leaves(theta)) for theta in thetas]
    assert "block_1/attention/query/kernel" in paths[0]
    assert "block_1/attention/query/kernel/terms/0/d" in paths[1]

    def added(parts, theta, changes):
        place = "block_{}/ffn/up/kernel"
        changes = {f"{place.format(i)}/{part}": x for (i, part), x in changes.items()}
        built = weights.leaves(parts.build(put(theta, changes)))
        base = params["block_0"]["ffn"]["up"]["kernel"]
        return [float((built[place.format(i)] - base).mean()) for i in range(L)]

    ones, twos = jnp.ones((D, F)), jnp.full((1, F), 2.0)
    for parts, theta, layer, want in (
        (tied, thetas[0], 0, [2, 2, 2, 2]),
        (own, thetas[2], 0, [2, 1, 1, 1]),
        (own, thetas[2], 2, [1, 1, 2, 1]),
    ):
        changes = {(0, "terms/0/v"): ones, (layer, "terms/0/d"): twos}
        np.testing.assert_allclose(added(parts, theta, changes), want, rtol=1e-5)


ATTENTION, FFN = "/attention/kernel$", "/ffn/kernel$"


@pytest.mark.parametrize(
    ("specs", "owner"),
    [
        ([("share", {"groups": 2}), ("share", {})], [0, 0, 0, 0]),
        ([("share", {"leaves": FFN}), ("share", {"leaves": ATTENTION})], [0, 0, 0, 0]),
        ([("share", {"groups": 2}), ("delta", {}), ("share", {"leaves": "/v$"})], [0, 0, 2, 2]),
        (
            [("share", {"leaves": "bias$"}), ("delta", {}), ("share", {"leaves": "/v$"})],
            [0, 1, 2, 3],
        ),
        ([("delta", {}), ("share", {}), ("delta", {"leaves": "/v$"})], [0, 0, 0, 0]),
        ([("delta", {}), ("delta", {"leaves": "/v$", "products": COL})], [0, 1, 2, 3]),
        (
            [("delta", {"leaves": ATTENTION}), ("share", {}), ("delta", {"leaves": FFN})],
            [0, 0, 0, 0],
        ),
    ],
)
def test_schemes_chain_in_any_order(specs, owner):
    parts = scheme(*(weights.spec(name, **fields) for name, fields in specs))
    theta = parts.init(RNG, SMALL)
    start, built = parts.build(theta), parts.build(moved(theta))
    assert jax.tree.structure(start) == jax.tree.structure(SMALL)
    kernels = [built[f"block_{i}"]["attention"]["kernel"] for i in range(L)]
    for i, j in enumerate(owner):
        wanted = SMALL[f"block_{j}"]["attention"]["kernel"]
        np.testing.assert_array_equal(start[f"block_{i}"]["attention"]["kernel"], wanted)
        for k in range(i):
            assert np.array_equal(kernels[i], kernels[k]) == (j == owner[k])
    trainable, rest = weights.partition(moved(theta))
    grads = jax.grad(
        lambda t: sum(x.sum() for x in jax.tree.leaves(parts.build(weights.combine(t, rest))))
    )(trainable)
    assert all((g != 0).all() for g in jax.tree.leaves(grads))


def test_a_chain_gives_the_arrays_of_leaves_that_a_scheme_fixed():
    def fix(rng, params):
        return jax.tree.map(weights.Fixed, params)

    frozen = weights.chain(weights.identity()._replace(init=fix))
    theta = frozen.init(RNG, SMALL)
    assert weights.sizes(theta) == (64, 0, 256)
    assert_equal(frozen.build(theta), SMALL)


def test_updates_of_a_chain_follow_each_other():
    def part(change):
        return weights.identity()._replace(update=lambda theta, step: change(theta, step))

    chained = weights.chain(part(lambda x, step: x + step), part(lambda x, step: x * 2))
    assert chained.update(1, 3) == 8
    parts = scheme(weights.spec("delta"), weights.spec("share"))
    theta = parts.init(RNG, SMALL)
    assert_equal(parts.update(theta, 3), theta)


def test_share_after_share_keeps_one_copy():
    theta = scheme(weights.spec("share", groups=2), weights.spec("share")).init(RNG, SMALL)
    assert weights.sizes(theta) == (16, 16, 64)


ZEROS = {"block_0": {"bias": jnp.zeros(3)}}
HALF = {"block_0": {"kernel": jnp.ones((2, 3), jnp.bfloat16)}}
D_FIRST = ({"d": {"kind": "scalar"}, "v": {"std": 1.0}},)
D_ALONE = ({"d": {"kind": "scalar", "value": 1.0}, "v": {"std": 1.0, "role": "fixed"}},)
RANKED = ({"v": {"kind": "lowrank", "rank": 3}},)
TIED = ({"d": {"kind": "row"}, "v": {"kind": "tied", "layer": 7}},)


@pytest.mark.parametrize(
    ("params", "specs", "message"),
    [
        (
            SMALL,
            [("delta", {"leaves": "block_0/atention/kernel"})],
            "no leaf matches.*did you mean.*'block_0/attention/kernel'",
        ),
        (SMALL, [("delta", {"leaves": "("})], "is not a regular expression"),
        (SMALL, [("delta", {"leaves": "."})], r"bias has shape \(2,\).*rows and columns"),
        (SMALL, [("delta", {}), ("delta", {"leaves": "w0$"})], "kernel/w0 is fixed, not trained"),
        (
            SMALL,
            [("delta", {"w0": "seed"}), ("delta", {"leaves": "w0$"})],
            "kernel/w0 is seeded, not trained",
        ),
        (SMALL, [("share", {}), ("delta", {"leaves": "block_[12]"})], "are aliases.*pick owners"),
        (SMALL, [("share", {}), ("dora", {"leaves": "block_[12]", "rank": 1})], "pick owners"),
        (ZEROS, [("delta", {"leaves": ".", "products": D_FIRST})], "all zeros.*D has no gradient"),
        (ZEROS, [("delta", {"leaves": ".", "products": D_ALONE})], "all zeros.*D has no gradient"),
        (HALF, [("delta", {"w0": "seed"})], "bfloat16; a seeded W0 is float32"),
        (SMALL, [("delta", {"products": RANKED})], "rank=3 of .*, 3 by 2, can be at most 2"),
        (SMALL, [("delta", {"products": TIED})], r"tied to layer=7; the layers are \[0, 1, 2, 3\]"),
        (SMALL, [("dora", {})], "rank=8 of .* can be at most 2"),
        (ZEROS, [("dora", {"leaves": "."})], r"shape \(3,\), has outputs without a direction"),
        (SMALL, [("fourier", {})], r"shape \(3, 2\), is no matrix with size=1000 places"),
        (
            SMALL,
            [("delta", {"leaves": "block_0.*kernel$"}), ("share", {})],
            "block_1/attention/kernel has no counterpart",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_by_init(params, specs, message):
    parts = scheme(*(weights.spec(name, **fields) for name, fields in specs))
    with pytest.raises(ValueError, match=message):
        parts.init(RNG, params)


def test_half_precision_is_kept():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), SMALL)
    both = {"d": {"kind": "row", "value": 1.0}, "v": {"std": 0.5}}
    low = {"d": {"kind": "const"}, "v": {"kind": "lowrank", "rank": 1}, "scale": 0.3}
    for first in (
        weights.presets.delta(both, low),
        weights.spec("dora", rank=1),
        weights.spec("fourier", size=2),
    ):
        parts = scheme(first, weights.spec("share", keep="/(d|magnitude|values)$"))
        theta = parts.init(RNG, params)
        floats = [x for x in jax.tree.leaves(theta) if jnp.issubdtype(x.dtype, jnp.floating)]
        # A seed of places carries their number in float32.
        floats = [x for x in floats if x.ndim]
        arrays = [*floats, *jax.tree.leaves(parts.build(theta))]
        assert {x.dtype for x in arrays} == {jnp.dtype(jnp.bfloat16)}


def test_shapes_alone_are_not_sized():
    theta = jax.eval_shape(lambda: SMALL)
    with pytest.raises(ValueError, match="theta has shapes alone: give arrays"):
        weights.sizes(theta)
