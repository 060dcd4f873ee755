"""Our `share` is ALBERT's: its layers under our owners are the reference's, and so are the gradients."""

import jax
import numpy as np
import pytest
from oracles import albert
from oracles.kept import FOLDER, near, read, tolerance

from tinyattn import weights
from tinyattn.weights import share

ABOUT, FOUND = read(FOLDER / "weights")["albert_sharing"]
SHAPES, WEIGHTS = ABOUT["cases"]["all"]["shapes"], FOUND["all"]["weights"]
SHARINGS = sorted(set(FOUND) - {"all"})


def split(path):
    return path.rsplit(".", 1)


def layer(row):
    """A row of weights as {module: {leaf: x}}."""
    ends, params = np.cumsum([np.prod(shape, dtype=int) for shape in SHAPES.values()]), {}
    for (path, shape), x in zip(SHAPES.items(), np.split(row, ends[:-1]), strict=True):
        module, leaf = split(path)
        params.setdefault(module, {})[leaf] = x.reshape(shape)
    return params


def places(settings):
    """(block, inner layer, row of the weights) in the order in which they run.

    An inner group is a block of several layers, so that sharing by blocks is ALBERT's sharing by groups.
    """
    runs = [(i, j) for i in range(settings["layers"]) for j in range(settings["inner"])]
    return [(*place, row) for place, row in zip(runs, settings["used"], strict=True)]


def unshared(settings):
    """All blocks with weights of their own: the reference's where a row is first used, else zeros."""
    params, seen = {}, set()
    for i, j, row in places(settings):
        own = layer(WEIGHTS[row] * (row not in seen))
        params.setdefault(f"block_{i}", {})[f"inner_{j}"] = own
        seen.add(row)
    return params


# Compiled once for all layers of all cases.
run_layer = jax.jit(albert.layer, static_argnames=("heads", "epsilon"))


@pytest.mark.parametrize("sharing", SHARINGS)
def test_sharing_by_groups_and_inner_groups_is_alberts_with_gradients(x64, sharing):
    settings, arrays, limit = ABOUT["cases"][sharing], FOUND[sharing], tolerance(ABOUT)
    scheme = weights.chain(share.make(share.Config(groups=settings["groups"])))
    theta = scheme.init(jax.random.key(0), unshared(settings))
    assert weights.sizes(theta).params == settings["parameters"]

    def run(theta):
        params, x = scheme.build(theta), FOUND["all"]["x"]
        for i, j, _ in places(settings):
            own = params[f"block_{i}"][f"inner_{j}"]
            x = run_layer(own, x, heads=settings["heads"], epsilon=settings["epsilon"])
        return x

    out, pull = jax.vjp(run, theta)
    near(out, arrays["out"], limit, "out")
    (grads,) = pull(FOUND["all"]["dout"])
    stored = {path for path, x in weights.leaves(theta).items() if not isinstance(x, weights.Alias)}
    rows = {}
    for i, j, row in places(settings):
        own = f"block_{i}/inner_{j}"
        if f"{own}/ffn/kernel" in stored:
            got = grads[f"block_{i}"][f"inner_{j}"]
            leaves = [got[module][leaf] for module, leaf in map(split, SHAPES)]
            rows[row] = np.concatenate([np.ravel(x) for x in leaves])
    near(np.stack([rows[row] for row in sorted(rows)]), arrays["grad_weights"], limit, "gradients")


@pytest.mark.parametrize("sharing", SHARINGS)
def test_owners_are_the_layers_that_ran_in_albert(sharing):
    """By hooks there: which row of the weights each layer in turn had."""
    settings = ABOUT["cases"][sharing]
    found = share.owners(share.Config(groups=settings["groups"]), unshared(settings))
    names = [f"block_{i}/inner_{j}/ffn/kernel" for i, j, _ in places(settings)]
    owners = [found.get(name, name) for name in names]
    distinct = list(dict.fromkeys(owners))
    assert [distinct.index(owner) for owner in owners] == settings["used"]
