"""The conformance suite: what every weight scheme promises, here or in a fork.

pytest tests/test_weights.py --scheme=myfork.prune
"""

import dataclasses
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from schemes import (
    NETS,
    OTHER,
    RNG,
    assert_close,
    assert_equal,
    check_built,
    check_gradient,
    check_kept,
    gradients,
    moved,
    normal_like,
    params_of,
    scheme,
)

from tinyattn import weights
from tinyattn.weights import _scheme


class Kit:
    """One scheme with one setting on the params of one network, and its program."""

    def __init__(self, name, fields):
        self.scheme = scheme(weights.spec(name, **fields))
        self.params = params_of("conv")
        # Two seeds, on the device from the start, as a training program holds them.
        drawn = (
            self.scheme.init(RNG, self.params),
            self.scheme.init(OTHER, params_of("conv", 1)),
        )
        self.theta, self.other = jax.tree.map(jnp.asarray, drawn)
        self.compiled = []

        def step(theta, targets):
            """Params, and the gradient of half their squared distance to targets."""
            self.compiled.append(1)
            built = self.scheme.build(theta)
            return built, gradients(theta, jax.tree.map(jnp.subtract, built, targets))

        self.step = jax.jit(step)


def cases(names):
    return [(name, fields) for name in names for fields in weights.module(name).CASES]


def label(case):
    return f"{case[0]}-{case[1]}"


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--scheme")
    names = [chosen] if chosen else weights.names()
    if "kit" in metafunc.fixturenames:
        metafunc.parametrize("kit", cases(names), ids=label, indirect=True, scope="module")
    elif "net" in metafunc.fixturenames:
        # Flax's own block has all kinds of leaves that the encoder has, which so meets one setting.
        firsts = [cases([name])[0] for name in names]
        met = [(case, net) for case in cases(names) for net in NETS]
        met = [(case, net) for case, net in met if net != "encoder" or case in firsts]
        metafunc.parametrize(("case", "net"), met, ids=[f"{label(c)}-{net}" for c, net in met])
    elif "first" in metafunc.fixturenames:
        every = sorted({*names, *weights.names()})
        pairs = [p for p in itertools.product(every, repeat=2) if set(p) & set(names)]
        metafunc.parametrize(("first", "second"), pairs)
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)


@pytest.fixture(scope="module")
def kit(request):
    return Kit(*request.param)


def test_contract(name):
    module = weights.module(name)
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    with pytest.raises(TypeError):
        module.Config("kernel$")
    for word in ("Source:", "Differs:"):
        assert word in module.__doc__, f"{name} does not say its {word}"
    assert module.CASES and module.make.__doc__


def test_works_on_the_params_of_any_model(case, net):
    name, fields = case
    params = params_of(net)
    theta = moved(scheme(weights.spec(name, **fields)).init(RNG, params))
    # In one program; eagerly it is of the params that all chains below have, and so of their shapes.
    fold = jax.jit(weights.fold)
    check_built(theta, params, fold)
    check_kept(theta, fold)


def test_gradients_are_the_references_and_jit_changes_nothing(kit):
    theta, zeros = moved(kit.theta), jax.tree.map(np.zeros_like, kit.params)
    built, gradient = kit.step(theta, zeros)
    assert_close(built, kit.scheme.build(theta))
    check_gradient(theta, gradient, built)
    # Another seed draws other arrays into the same structure, so it needs no other program.
    updated = kit.scheme.update(theta, jnp.int32(1))
    for other in (kit.other, updated):
        kit.step(other, zeros)
    assert len(kit.compiled) == 1


def test_seeds_side_by_side_equal_one_by_one(kit):
    thetas = [moved(kit.theta, 0), moved(kit.other, 1)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *thetas)
    together = jax.jit(jax.vmap(kit.scheme.build))(stacked)
    for i, theta in enumerate(thetas):
        assert_close(jax.tree.map(lambda x, i=i: x[i], together), kit.scheme.build(theta))


def test_init_repeats(kit):
    assert_equal(jax.tree.map(jnp.asarray, kit.scheme.init(RNG, kit.params)), kit.theta)


def test_training_moves_what_is_trained_and_nothing_else(kit):
    targets = jax.tree.map(lambda x, u: x + 0.1 * u, kit.params, normal_like(kit.params, 3))
    theta, losses = kit.theta, []
    for step in range(5):
        theta = kit.scheme.update(theta, jnp.int32(step))
        built, grads = kit.step(theta, targets)
        off = jax.tree.map(jnp.subtract, built, targets)
        losses.append(sum(float(jnp.square(x).sum()) for x in jax.tree.leaves(off)))
        trainable, rest = weights.partition(theta)
        moving = jax.tree.map(lambda x, g: x - 0.02 * g, trainable, grads)
        theta = weights.combine(moving, rest)
    assert losses[-1] < losses[0]
    before, after = weights.leaves(kit.theta), weights.leaves(theta)
    found = {path: g for path, g in weights.leaves(grads).items() if g is not None}
    assert before.keys() == after.keys()
    still = kit.scheme.update is _scheme.keep
    for path, leaf in before.items():
        if path in found:
            assert np.isfinite(found[path]).all() and np.abs(found[path]).max() > 0, path
            assert not np.array_equal(after[path], leaf), path
        elif still:
            assert_equal(after[path], leaf)


# Pairs that mean nothing in any setting, each with its reason.
ZERO = "what the first one trains has columns of zeros at its start, which point nowhere"
VECTOR = "the numbers of a spectrum are no matrix"
MEANINGLESS = {
    ("delta", "dora"): ZERO,
    ("dora", "dora"): ZERO,
    ("fourier", "delta"): VECTOR,
    ("fourier", "dora"): VECTOR,
    ("fourier", "fourier"): VECTOR,
    ("fourier", "quantize"): VECTOR,
}


def onto(theta, fields):
    """The fields, to pick what a scheme trains of the kernels and is a matrix."""
    trained = weights.leaves(weights.partition(theta)[0])
    shapes = {path: x.shape for path, x in trained.items() if x is not None and "kernel" in path}
    paths = [re.escape(path) for path, shape in shapes.items() if min(shape[-2:], default=1) > 1]
    return fields | {"leaves": f"^({'|'.join(paths)})$"}


def chained(params, one, two):
    """The scheme of a chain and its theta; None where it is refused."""
    parts = scheme(*(weights.spec(name, **fields) for name, fields in (one, two)))
    try:
        return parts, parts.init(RNG, params)
    except ValueError as error:
        assert len(str(error)) > 20, "a refusal says why"
        return None


def test_a_chain_of_two_is_refused_or_keeps_every_promise(first, second):
    """Every setting of either scheme with the other's first one, in both orders."""
    params, (ones, twos) = params_of("conv"), (cases([name]) for name in (first, second))
    met = [(one, twos[0]) for one in ones] + [(ones[0], two) for two in twos[1:]]
    made = [found for one, two in met if (found := chained(params, one, two))]
    if not made:  # the second has to be told what the first one trains
        theta = scheme(weights.spec(first, **ones[0][1])).init(RNG, params)
        name, fields = twos[0]
        made = [chained(params, ones[0], (name, onto(theta, fields)))]
    if made == [None]:
        assert (first, second) in MEANINGLESS
        return
    assert (first, second) not in MEANINGLESS
    for parts, theta in made:
        theta = moved(theta)
        check_built(parts.update(theta, 1), params)
        check_kept(theta)
        cotangents = normal_like(params, 1)
        check_gradient(theta, gradients(theta, cotangents), cotangents)
