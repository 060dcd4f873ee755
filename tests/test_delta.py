"""What W0 + Σ c D ⊙ V means: factors of every kind, how they start, move and are refused."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemes import RNG, P, check_gradient, check_kept, gradients, moved
from schemes import scheme as build

from tinyattn import weights
from tinyattn.weights import presets

# Each kind as a D; what it takes to be one.
KINDS = {
    "const": {},
    "scalar": {"value": 0.7},
    "row": {"value": 0.7},
    "col": {"value": 0.7},
    "rank1": {"value": 1.0},
    "lowrank": {"rank": 2, "std": 0.5},
    "full": {"value": 0.5, "std": 0.3},
    "mask": {"std": 1.0, "density": 0.4},
    "sparse": {"density": 0.4, "std": 1.0},
    "hashed": {"size": 4, "std": 1.0},
    "atoms": {"size": 2, "std": 1.0},
    "tied": {},
}
FULL = {"kind": "full", "std": 1.0}
LAYERS = {f"block_{i}": {"kernel": P["kernel"] * (i + 1)} for i in range(4)}


def product(d, v, **fields):
    return presets.delta({"d": d, "v": v, **fields}, leaves="kernel$")


@pytest.mark.parametrize(
    ("kind", "role"), list(itertools.product(KINDS, ("trainable", "fixed", "seeded")))
)
def test_every_factor_in_value_and_gradients(kind, role):
    fields = {"kind": kind, "role": role, **KINDS[kind]}
    unseedable = kind in ("const", "sparse", "tied")
    if role == "seeded":
        fields |= {"value": 0.0, "std": 1.0}
    if role == "seeded" and unseedable:
        with pytest.raises(ValueError, match=f"'{kind}' cannot be seeded; these can"):
            product(fields, FULL)
        return
    theta = moved(build(product(fields, FULL, scale=0.5)).init(RNG, P))
    check_kept(theta)
    G = {"kernel": np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)}
    grads = gradients(theta, G)
    check_gradient(theta, grads, G)
    leaf = theta["kernel"].terms[0]
    alone = {"const": 1.0, "tied": P["kernel"]}
    d = alone[kind] if kind in alone else weights.reference({"d": leaf.d})["d"]
    want = P["kernel"] + 0.5 * d * leaf.v
    np.testing.assert_allclose(weights.fold(theta)["kernel"], want, atol=1e-5)
    np.testing.assert_allclose(grads["kernel"].terms[0].v, 0.5 * G["kernel"] * d, atol=1e-5)
    trained = jax.tree.leaves(grads["kernel"].terms[0].d)
    moves = role == "trainable" and kind not in ("const", "tied")
    assert bool(trained) == (moves or kind == "atoms")
    assert all(np.abs(g).max() > 0 for g in trained)


def test_gradients_of_the_factors_follow_the_chain_rule():
    axes = {"scalar": (0, 1), "row": (0,), "col": (1,), "full": ()}
    G = np.random.default_rng(4).standard_normal((5, 3)).astype(np.float32)
    for d, v in itertools.product(axes, repeat=2):
        section = product({"kind": d, "value": 1.0}, {"kind": v, "std": 1.0})
        theta = moved(build(section).init(RNG, P))
        grad, leaf = gradients(theta, {"kernel": G})["kernel"].terms[0], theta["kernel"].terms[0]
        for kind, got, own, other in ((d, grad.d, leaf.d, leaf.v), (v, grad.v, leaf.v, leaf.d)):
            want = (np.broadcast_to(other, (5, 3)) * G).sum(axes[kind]).reshape(own.shape)
            np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_a_row_scales_outputs_and_a_column_inputs():
    x = np.random.default_rng(1).standard_normal((2, 5)).astype(np.float32)
    for d, times in (("row", lambda d, v: (x @ v) * d), ("col", lambda d, v: (x * d.T) @ v)):
        theta = build(presets.both(d, leaves="kernel$")).init(RNG, P)
        np.testing.assert_array_equal(theta["kernel"].w0.value, P["kernel"])
        np.testing.assert_array_equal(weights.fold(theta)["kernel"], P["kernel"])
        theta = moved(theta)
        term = theta["kernel"].terms[0]
        want = x @ P["kernel"] + times(np.asarray(term.d), np.asarray(term.v))
        np.testing.assert_allclose(x @ weights.fold(theta)["kernel"], want, atol=1e-5)


@pytest.mark.parametrize("roles", list(itertools.product(("trainable", "fixed"), repeat=2)))
def test_how_factors_start_and_which_train(roles):
    params = {"kernel": 3 * jax.random.normal(RNG, (100, 80))}
    d = {"kind": "row", "value": 0.5, "role": roles[0]}
    theta = build(product(d, {"std": 0.2, "role": roles[1]})).init(RNG, params)
    (leaf,) = theta["kernel"].terms
    assert [isinstance(x, weights.Fixed) for x in (leaf.d, leaf.v)] == [r == "fixed" for r in roles]
    trained = sum(n for n, role in zip((80, 8000), roles, strict=True) if role == "trainable")
    assert weights.sizes(theta) == (16080, trained, 4 * 16080)
    assert (weights.value(leaf.d) == 0.5).all()
    # In units of the leaf's own size.
    assert weights.value(leaf.v).std() == pytest.approx(0.2 * 3, rel=0.05)


def test_tied_to_its_own_base_and_to_another_layers():
    for w0, layer in itertools.product(("init", "seed"), (-1, 2)):
        v = {"kind": "tied", "layer": layer}
        section = presets.delta({"d": {"kind": "row"}, "v": v}, leaves="kernel$", w0=w0)
        theta = moved(build(section).init(RNG, LAYERS))
        bases = [weights.value(theta[f"block_{i}"]["kernel"].w0) for i in range(4)]
        built = weights.fold(theta)
        for i in range(4):
            d = theta[f"block_{i}"]["kernel"].terms[0].d
            want = bases[i] + d * bases[i if layer < 0 else layer]
            np.testing.assert_allclose(built[f"block_{i}"]["kernel"], want, rtol=1e-5, atol=1e-6)
        assert weights.sizes(theta).trainable == 4 * 3


# Scope and groups to the layer whose V each of four layers has.
SCOPES = {
    ("leaf", 1): [0, 1, 2, 3],
    ("layers", 1): [0, 0, 0, 0],
    ("layers", 2): [0, 0, 2, 2],
    ("model", 1): [0, 0, 0, 0],
}


@pytest.mark.parametrize("scope", SCOPES)
def test_who_has_a_factor_in_common_and_that_its_gradient_is_the_sum(scope):
    v = {"std": 1.0, "scope": scope[0], "groups": scope[1]}
    section = presets.delta({"d": {"kind": "row", "value": 1.0}, "v": v}, leaves="kernel$")
    params = LAYERS | {"head": {"kernel": P["kernel"]}, "wide": {"kernel": jnp.ones((5, 4))}}
    theta = moved(build(section).init(RNG, params))
    owners = SCOPES[scope]
    for i, owner in enumerate(owners):
        own = theta[f"block_{i}"]["kernel"].terms[0].v
        wanted = f"block_{owner}/kernel/terms/0/v"
        assert own.owner == wanted if owner != i else own.shape == (5, 3)
    # Only all of one shape in the model have a leaf outside the layers in common with them.
    assert isinstance(theta["head"]["kernel"].terms[0].v, weights.Alias) == (scope[0] == "model")
    assert theta["wide"]["kernel"].terms[0].v.shape == (5, 4)
    G = jax.tree.map(lambda x: x * 0 + 1.0, params)
    grads = gradients(theta, G)
    users = {i: [k for k in range(4) if owners[k] == i] for i in set(owners)}
    for i, using in users.items():
        ds = [theta[f"block_{k}"]["kernel"].terms[0].d for k in using]
        ds += [theta["head"]["kernel"].terms[0].d] if scope[0] == "model" else []
        want = np.broadcast_to(sum(ds), (5, 3))
        np.testing.assert_allclose(grads[f"block_{i}"]["kernel"].terms[0].v, want, rtol=1e-5)


def test_what_others_use_of_a_node_is_not_cut():
    d = {"kind": "mask", "role": "fixed", "density": 0.4}
    v = {"std": 1.0, "scope": "layers"}
    theta = build(presets.delta({"d": d, "v": v}, leaves="kernel$")).init(RNG, LAYERS)
    kept = weights.compact(theta)
    first, second = (kept[f"block_{i}"]["kernel"].terms[0] for i in range(2))
    # Masks differ, so the first layer's V is kept whole for the others.
    assert np.shape(first.v) == (5, 3) and isinstance(second.v, weights.Alias)
    assert first.d.value.dtype == bool
    check_kept(theta)
    alone = weights.compact(build(product(d, {"std": 1.0})).init(RNG, P))["kernel"].terms[0]
    assert alone.d is None and alone.v.values.value.size == 6 == alone.v.at.value.sum()


ZERO, ROW = {"kind": "full"}, {"kind": "row", "value": 1.0}


@pytest.mark.parametrize(
    ("products", "fields", "message"),
    [
        (({"d": {"kind": "row"}, "v": ZERO},), {}, "D = V = 0 is a saddle point.*give one a value"),
        (({"d": {"kind": "row"}, "v": {"kind": "lowrank"}},), {}, "D = V = 0 is a saddle point"),
        (({"d": {"kind": "row", "role": "fixed"}, "v": FULL},), {}, "D = 0 is never trained"),
        (({"d": ROW, "v": {"role": "fixed"}},), {}, "V = 0 is never trained, so D has no gradient"),
        (({"d": {"kind": "tied"}, "v": {"kind": "tied"}},), {}, "D and V are both tied"),
        (
            ({"d": ROW, "v": {"kind": "tied"}},),
            {"w0": "zero"},
            "tied to W0, but w0='zero' has none",
        ),
        (({"d": ROW, "v": FULL, "scale": 0.0},), {}, "scale=0 leaves nothing"),
        ((), {"w0": "zero"}, r"products=\(\) and w0='zero' leave nothing"),
        ((3,), {}, "3 is no section of Product's fields"),
        (({"d": ROW, "w": FULL},), {}, "Product has no field 'w'; Valid names: d, scale, v"),
        (({"d": {"kind": "rows"}},), {}, "kind='rows'; did you mean 'row'"),
        (({"v": {"kind": "fill"}},), {}, "kind='fill'; did you mean 'full'"),
        (({"v": {"role": "seded"}},), {}, "role='seded'; did you mean 'seeded'"),
        (({"v": {"scope": "layer"}},), {}, "scope='layer'; did you mean 'layers'"),
        (({"d": {"estimator": "hard"}},), {}, "estimator='hard'"),
        (({"v": {"std": -1.0}},), {}, "std=-1.0 is a standard deviation"),
        (({"v": {"kind": "lowrank", "rank": 0}},), {}, "rank=0 and groups=1 must be at least 1"),
        (({"v": {"kind": "hashed"}},), {}, "'hashed' has size=0 numbers"),
        (
            ({"d": {"kind": "mask", "density": 1.5}},),
            {},
            r"density=1.5 must be a share in \[0, 1\]",
        ),
        (({"v": {"kind": "sparse"}},), {}, "'sparse' is drawn and needs a density above 0"),
        (({"v": {"role": "seeded"}},), {}, "random numbers about 0, with value=0.0 and std=0.0"),
        (
            ({"v": {"kind": "row", "own": True}},),
            {},
            "only a full factor starts as the leaf itself",
        ),
        (({"v": FULL},), {"w0": "sead"}, "w0='sead' is unknown; did you mean 'seed'"),
        (({"v": FULL},), {"leafs": "."}, "no field 'leafs'; did you mean 'leaves'"),
        (({"v": FULL},), {"layers": "block"}, r"layers='block' needs one \(group\)"),
    ],
)
def test_illegal_settings_are_refused_at_once(products, fields, message):
    with pytest.raises(ValueError, match=message):
        weights.spec("delta", products=products, **fields)
