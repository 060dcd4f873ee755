"""Layers that share leaves: who owns them, and that gradients add up over their uses."""

import jax.numpy as jnp
import numpy as np
import pytest
from schemes import RNG, SMALL, gradients, normal_like, params_of, scheme

from tinyattn import weights
from tinyattn.weights import share

MODES = {
    "all": ({}, lambda path: True, [0, 0, 0, 0]),
    "attention": ({"leaves": "/attention/"}, lambda path: "/attention/" in path, [0, 0, 0, 0]),
    "ffn": ({"leaves": "/ffn/"}, lambda path: "/ffn/" in path, [0, 0, 0, 0]),
    "groups": ({"groups": 2}, lambda path: True, [0, 0, 2, 2]),
    "keep": ({"keep": "bias$"}, lambda path: not path.endswith("bias"), [0, 0, 0, 0]),
}


@pytest.mark.parametrize("mode", MODES)
def test_sharing_modes(mode):
    fields, shared, owner = MODES[mode]
    params = params_of("encoder")
    parts = scheme(weights.spec("share", **fields))
    theta = parts.init(RNG, params)
    want = {}  # path of an alias: path of its owner
    for path in weights.leaves(params):
        i = int(path[6]) if path.startswith("block_") else 0
        if path.startswith("block_") and shared(path) and owner[i] != i:
            want[path] = f"block_{owner[i]}{path[7:]}"
    stored = weights.leaves(theta)
    aliases = {p: leaf.owner for p, leaf in stored.items() if isinstance(leaf, weights.Alias)}
    assert aliases == want and want

    flat = {path: np.asarray(leaf) for path, leaf in weights.leaves(params).items()}
    kept = sum(leaf.size for path, leaf in flat.items() if path not in want)
    assert weights.sizes(theta) == (kept, kept, 4 * kept)
    for path, leaf in weights.leaves(parts.build(theta)).items():
        np.testing.assert_array_equal(leaf, flat[want.get(path, path)])

    cotangents = normal_like(params, 1)
    grads = gradients(theta, cotangents)
    uses = {path: np.array(g) for path, g in weights.leaves(cotangents).items()}
    for path, own in want.items():
        uses[own] += uses.pop(path)
    got = {p: g for p, g in weights.leaves(grads).items() if g is not None}
    assert got.keys() == uses.keys()
    for path, grad in got.items():
        np.testing.assert_allclose(grad, uses[path], atol=1e-5)


def test_layers_may_be_numbered_otherwise():
    params = {f"layer_{i:02d}": {"kernel": jnp.full((2, 3), i)} for i in (0, 1, 9, 10)}
    parts = scheme(weights.spec("share", layers=r"layer_(\d+)/", groups=2))
    built = parts.build(parts.init(RNG, params))
    assert [int(x["kernel"][0, 0]) for x in built.values()] == [0, 0, 9, 9]


def test_a_shared_leaf_may_be_shared_further():
    paths = [f"stage_{i}/block_{j}/kernel" for i in range(2) for j in range(2)]
    params = {path: jnp.full(3, float(i)) for i, path in enumerate(paths)}
    inner = weights.spec("share", leaves="stage_0")
    outer = weights.spec("share", layers=r"stage_(\d+)/")
    parts = scheme(inner, outer)
    theta = parts.init(RNG, params)
    assert {leaf.owner for path, leaf in theta.items() if path != paths[0]} == {paths[0]}
    assert all((x == 0).all() for x in parts.build(theta).values())


# (owners, groups, layers) to the place of the layer whose leaves each uses, as the papers have it.
OWNERS = {
    ("all", 1, 4): [0, 0, 0, 0],
    ("groups", 1, 3): [0, 0, 0],
    ("groups", 2, 6): [0, 0, 0, 3, 3, 3],
    ("groups", 6, 6): [0, 1, 2, 3, 4, 5],
    ("repeat", 3, 6): [0, 0, 2, 2, 4, 4],
    ("cycle", 2, 6): [0, 1, 0, 1, 0, 1],
    ("cycle", 3, 6): [0, 1, 2, 0, 1, 2],
    ("cycle", 3, 5): [0, 1, 2, 0, 1],
    ("cycle_rev", 2, 6): [0, 1, 0, 1, 1, 0],
    ("cycle_rev", 3, 6): [0, 1, 2, 2, 1, 0],
    ("cycle_rev", 3, 9): [0, 1, 2, 0, 1, 2, 2, 1, 0],
    ("sandwich", 1, 5): [0, 1, 1, 1, 4],
    ("sandwich", 2, 6): [0, 1, 1, 3, 3, 5],
    ("sandwich", 1, 2): [0, 1],
    ("sandwich", 1, 1): [0],
}


@pytest.mark.parametrize(("case", "owner"), OWNERS.items(), ids=str)
def test_who_owns_a_layer(case, owner):
    kind, groups, layers = case
    params = {f"block_{i}/kernel": np.full(2, float(i)) for i in range(layers)}
    config = share.Config(owners=kind, groups=groups)
    theta = share.make(config).init(RNG, params)
    assert [int(x[0]) for x in weights.fold(theta).values()] == owner
    assert weights.sizes(theta).params == 2 * len(set(owner))
    # The gradient of what is shared is the sum over its uses.
    cotangents = {path: np.full(2, 10.0**i, np.float32) for i, path in enumerate(params)}
    grads = gradients(theta, cotangents)
    for i in set(owner):
        want = sum(10.0**k for k in range(layers) if owner[k] == i)
        np.testing.assert_allclose(grads[f"block_{i}/kernel"], want, rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"groups": 0}, "groups=0 must be at least 1"),
        ({"owners": "cycel"}, "owners='cycel'; did you mean 'cycle'"),
        ({"owners": "all", "groups": 2}, "owners='all' is one group, not groups=2"),
        ({"leaves": "("}, r"leaves='\(' is no regular expression"),
        ({"keep": "["}, r"keep='\[' is no regular expression"),
        ({"layers": "block"}, r"layers='block' needs one \(group\)"),
        ({"layers": "("}, r"layers='\(' is no regular expression"),
    ],
)
def test_illegal_settings_are_refused_at_once(fields, message):
    with pytest.raises(ValueError, match=message):
        weights.spec("share", **fields)


UNEQUAL = {f"block_{i}": {"kernel": jnp.ones((3, 2 + i))} for i in range(2)}
TYPES = {f"block_{i}": {"kernel": jnp.ones(3, t)} for i, t in enumerate(("float32", "bfloat16"))}
LONE = {"block_0": {"a": {"kernel": jnp.ones(3)}}, "block_1": {"b": {"kernel": jnp.ones(3)}}}


@pytest.mark.parametrize(
    ("params", "fields", "message"),
    [
        (SMALL, {"leaves": "/atention/"}, "no leaf matches '/atention/'; did you mean"),
        (SMALL, {"keep": "scale$"}, r"no leaf matches 'scale\$'"),
        (SMALL, {"keep": "."}, "picks no leaf of more than one layer"),
        (SMALL, {"leaves": "block_0"}, "picks no leaf of more than one layer"),
        (SMALL, {"groups": 3}, r"groups=3 must divide the 4 layers 0\.\.3"),
        (SMALL, {"owners": "cycle", "groups": 5}, "groups=5 are more than 'cycle' has of 4 layers"),
        (SMALL, {"owners": "sandwich", "groups": 3}, "groups=3 are more than 'sandwich' has of 4"),
        (SMALL, {"layers": r"layer_(\d+)"}, "no path has a layer.*give 'layers'"),
        (UNEQUAL, {}, r"block_1/kernel is trainable float32\[3, 3\] but block_0/.* is .*\[3, 2\]"),
        (TYPES, {}, "is trainable bfloat16.* but .* is trainable float32"),
        (LONE, {}, "block_1/b/kernel has no counterpart block_0/b/kernel"),
    ],
)
def test_what_cannot_be_shared_is_refused(params, fields, message):
    with pytest.raises(ValueError, match=message):
        scheme(weights.spec("share", **fields)).init(RNG, params)
