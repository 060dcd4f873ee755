"""How D ⊙ V trains: as ordinary weights do where D is one, and what descent conserves where not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from schemes import IDS, RNG, encoder, params_of, scheme

from tinyattn import optim, weights
from tinyattn.attention.full import dense
from tinyattn.weights import presets


@pytest.fixture
def double(x64, monkeypatch):
    """The encoder's params and its compiled gradient, all in float64.

    Rounded to float32 anywhere, two trajectories would part by 1e-9 after some steps. So attention is
    its reference here, for the softmax core is made for float32.
    """
    monkeypatch.setattr(jnp, "float32", jnp.float64)
    monkeypatch.setattr(dense, "attend", dense.reference)
    module = encoder()
    object.__setattr__(module.config, "dtype", "float64")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params_of("encoder"))

    def loss(params):
        return jnp.square(module.apply({"params": params}, IDS) - 1).mean()

    traced = jax.jit(jax.grad(loss)).trace(params)
    assert "f32" not in str(traced.jaxpr)
    return params, traced.lower().compile()


def test_a_frozen_one_times_v_is_ordinary_training(double):
    params, gradient = double
    # A key's bias has no gradient but rounding, and Adam divides rounding by its own size.
    one = {"d": {"kind": "scalar", "value": 1.0, "role": "fixed"}}
    judged = [path for path in weights.leaves(params) if "key/bias" not in path]

    def trained(rule, *specs):
        parts = scheme(*specs)
        optimizer = optim.build(optim.Config(optimizer=rule, learning_rate=0.02), 20)
        trainable, rest = weights.partition(parts.init(RNG, params))

        # One program has the network's gradient for every training: the rest is the scheme's.
        @jax.jit
        def update(trainable, opt, gradient):
            def build(trainable):
                return parts.build(weights.combine(trainable, rest))

            _, pull = jax.vjp(build, trainable)
            updates, opt = optimizer.update(*pull(gradient), opt, trainable)
            trainable = optax.apply_updates(trainable, updates)
            return trainable, opt, build(trainable)

        opt, built, path = optimizer.init(trainable), params, []
        for _ in range(20):
            trainable, opt, built = update(trainable, opt, gradient(built))
            path.append(built)
        arrays = [weights.leaves(built) for built in path]
        return np.stack([np.concatenate([np.ravel(x[leaf]) for leaf in judged]) for x in arrays])

    for rule in ("sgd", "adam"):
        plain = trained(rule)
        ours = trained(rule, presets.delta(one, leaves="."))
        assert plain.dtype == ours.dtype == np.float64
        assert np.abs(ours - plain).max() < 1e-12
        assert np.abs(plain[-1] - plain[0]).max() > 1e-2


def trained_scalars(learning_rate, steps, target, **fields):
    """D and V of one row of weights after gradient descent towards a target, with W0 = 0."""
    parts = scheme(presets.both("full", leaves="kernel$"))
    target = jnp.asarray(target)[None]
    theta = parts.init(RNG, {"kernel": jnp.zeros_like(target)})
    optimizer = optim.build(
        optim.Config(optimizer="sgd", learning_rate=learning_rate, **fields), steps
    )
    trainable, rest = weights.partition(theta)

    def loss(trainable):
        built = parts.build(weights.combine(trainable, rest))["kernel"]
        return jnp.square(built - target).sum() / 2

    def step(state, _):
        trainable, opt = state
        updates, opt = optimizer.update(jax.grad(loss)(trainable), opt, trainable)
        return (optax.apply_updates(trainable, updates), opt), None

    state = trainable, optimizer.init(trainable)
    leaf = jax.jit(lambda state: jax.lax.scan(step, state, None, length=steps))(state)[0][0]
    return np.asarray(leaf["kernel"].terms[0].d)[0], np.asarray(leaf["kernel"].terms[0].v)[0]


def test_small_steps_conserve_the_difference_of_squares(x64):
    drift = []
    for rate in (1e-1, 1e-2, 1e-3):
        d, v = trained_scalars(rate, round(2 / rate), [2.0, -1.0, 0.5])
        drift.append(np.abs(d**2 - v**2 - 1).max())  # it starts from D = 1, V = 0
    assert np.abs(v).min() > 0.2
    assert drift[0] < 0.2
    for coarse, fine in itertools.pairwise(drift):
        assert 7 < coarse / fine < 14


def test_weight_decay_on_both_factors_shrinks_as_an_l1_penalty(x64):
    target = np.array([2.0, 0.5, 0.2, -0.1, -0.7])
    d, v = trained_scalars(0.05, 4000, target, weight_decay=0.3)
    # Minimising (w - t)^2 / 2 + 0.3 |w| moves every target by 0.3 towards 0, and small ones to it.
    want = np.sign(target) * np.maximum(np.abs(target) - 0.3, 0)
    np.testing.assert_allclose(d * v, want, atol=1e-6)
