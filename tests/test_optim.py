"""Schedules against their formulas, optimisers against hand-written ones."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinyattn import optim
from tinyattn.optim import Config


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def rates(steps, *at, **fields):
    schedule = optim.schedule(Config(learning_rate=2.0, **fields), steps)
    return [float(schedule(jnp.int32(t))) for t in at]


@pytest.mark.parametrize("name", optim.SCHEDULES)
def test_schedule_equals_its_formula(x64, name):
    n, w, peak, end = 100, 0 if name == "one_cycle" else 20, 2.0, 0.1

    def one_cycle(t):
        low, rise = peak / 25, 30
        if t < rise:
            return peak + (low - peak) * (1 + math.cos(math.pi * t / rise)) / 2
        last = low / 1e4
        return last + (peak - last) * (1 + math.cos(math.pi * (t - rise) / (n - rise))) / 2

    formulas = {
        "constant": lambda t: peak,
        "cosine": lambda t: (
            peak * (end + (1 - end) * (1 + math.cos(math.pi * (t - w) / (n - w))) / 2)
        ),
        "linear": lambda t: peak * (1 - (1 - end) * (t - w) / (n - w)),
        "one_cycle": one_cycle,
        "step": lambda t: peak * 0.3 ** ((t >= 50) + (t >= 75)),
    }
    at = [0, 1, w // 2, w, w + 1, 30, 49, 50, 51, 60, 74, 75, n - 1, n, n + 5]
    expected = [peak * (t + 1) / (w + 1) if t < w else formulas[name](min(t, n)) for t in at]
    fields = dict(schedule=name, warmup_steps=w, end_factor=end, step_factor=0.3)
    np.testing.assert_allclose(rates(n, *at, **fields), expected, rtol=1e-12)


def test_milestones_that_round_to_one_step_both_count():
    assert rates(2, 0, 1, schedule="step", step_milestones=(0.4, 0.6), step_factor=0.5) == [2, 0.5]
    assert rates(9, 8, schedule="step", step_milestones=()) == [2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamm"}, "unknown optimizer 'adamm'; did you mean 'adam"),
        ({"schedule": "cosin"}, "unknown schedule 'cosin'; did you mean 'cosine'.*one_cycle"),
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be a finite number above 0"),
        ({"learning_rate": math.nan}, "learning_rate=nan"),
        ({"clip_norm": None}, "clip_norm=None must be a finite number, 0 or more"),
        ({"b1": 1.0}, "b1=1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"warmup_steps": 1.5}, "warmup_steps=1.5"),
        ({"step_milestones": (0.7, 0.5)}, "rising fractions"),
        ({"step_milestones": 0.5}, "rising fractions"),
        ({"schedule": "one_cycle", "warmup_steps": 3}, "warmup_steps=3; set it to 0"),
    ],
)
def test_config_refuses(fields, message):
    with pytest.raises(ValueError, match=message):
        Config(**fields)


def test_schedule_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="steps=5 leaves none after warmup_steps=5"):
        optim.schedule(Config(warmup_steps=5), 5)
    with pytest.raises(ValueError, match=r"are steps \[50, 75\] of 100"):
        optim.build(Config(schedule="step", warmup_steps=60), 100)


def test_lists_from_json_become_tuples():
    assert hash(Config(step_milestones=[0.2, 0.4])) == hash(Config(step_milestones=(0.2, 0.4)))


def test_clip_bounds_the_norm_of_the_whole_gradient():
    params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
    grads = {"a": jnp.array([6.0, 0.0]), "b": jnp.array([8.0])}

    def first_update(clip_norm):
        optimizer = optim.build(Config(optimizer="sgd", learning_rate=1, clip_norm=clip_norm), 10)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    np.testing.assert_allclose(first_update(2.0)["a"], [-1.2, 0])
    np.testing.assert_allclose(first_update(2.0)["b"], [-1.6])
    for off in (0.0, 20.0):
        np.testing.assert_array_equal(first_update(off)["a"], -grads["a"])


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_decay_acts_on_matrices_alone(name):
    params = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3), "scale": jnp.ones(()), "fixed": None}
    config = Config(optimizer=name, learning_rate=0.5, weight_decay=0.1)

    def step(**given):
        optimizer = optim.build(config, 10, **given)
        grads = jax.tree.map(jnp.zeros_like, params)
        updates, _ = optimizer.update(grads, optimizer.init(params), params)
        return optax.apply_updates(params, updates)

    after = step()
    assert (after["kernel"] < 1).all() and after["fixed"] is None
    assert (after["bias"] == 1).all() and (after["scale"] == 1).all()
    after = step(decayed=lambda tree: jax.tree.map(lambda leaf: leaf.ndim == 1, tree))
    assert (after["kernel"] == 1).all() and (after["bias"] < 1).all()


def gradient(params, t):
    return jax.tree.map(lambda p: jnp.sin(3 * p + t), params)


def by_hand(name, params, steps, *, lr, b1=0.8, b2=0.95, eps=1e-6, momentum=0.7, decay=0.1):
    """Three update rules as their papers write them, in NumPy."""
    params = {k: np.array(p) for k, p in params.items()}
    m, v = ({k: np.zeros_like(p) for k, p in params.items()} for _ in range(2))
    for t in range(steps):
        for k, p in params.items():
            g = np.sin(3 * p + t)
            pull = decay * p if p.ndim >= 2 else 0.0
            if name != "adamw":
                g, pull = g + pull, 0.0
            if name == "sgd":
                m[k] = momentum * m[k] + g
                update = m[k]
            else:
                m[k] = b1 * m[k] + (1 - b1) * g
                v[k] = b2 * v[k] + (1 - b2) * g**2
                m_hat, v_hat = m[k] / (1 - b1 ** (t + 1)), v[k] / (1 - b2 ** (t + 1))
                update = m_hat / (np.sqrt(v_hat) + eps) + pull
            params[k] = p - lr(t) * update
    return params


def make(name, dtype=jnp.float64):
    config = Config(
        optimizer=name,
        learning_rate=0.05,
        schedule="linear",
        warmup_steps=1,
        b1=0.8,
        b2=0.95,
        eps=1e-6,
        momentum=0.7,
        weight_decay=0.1,
    )
    random = np.random.default_rng(0)
    params = {"kernel": random.normal(size=(4, 3)), "bias": random.normal(size=3)}
    return optim.build(config, 4), jax.tree.map(lambda p: jnp.asarray(p, dtype), params)


def update(optimizer, params, state, t):
    updates, state = optimizer.update(gradient(params, t), state, params)
    return optax.apply_updates(params, updates), state


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_equals_the_rule_written_by_hand(x64, name):
    optimizer, params = make(name)
    expected = by_hand(name, params, 3, lr=lambda t: 0.05 * [1 / 2, 1, 2 / 3][t])
    state = optimizer.init(params)
    for t in range(3):
        params, state = update(optimizer, params, state, t)
    for k in params:
        assert params[k].dtype == jnp.float64
        np.testing.assert_allclose(params[k], expected[k], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", optim.OPTIMIZERS)
def test_scan_and_vmap_equal_a_loop(name):
    optimizer, params = make(name, jnp.float32)
    seeds = [params, jax.tree.map(lambda p: p + 1, params)]

    @jax.jit
    @jax.vmap
    def scanned(params):
        body = lambda carry, t: (update(optimizer, *carry, t), None)  # noqa: E731
        (params, _), _ = jax.lax.scan(body, (params, optimizer.init(params)), jnp.arange(4.0))
        return params

    together = scanned(jax.tree.map(lambda *p: jnp.stack(p), *seeds))
    for i, params in enumerate(seeds):
        state = optimizer.init(params)
        for t in range(4):
            params, state = update(optimizer, params, state, float(t))
        for k in params:
            np.testing.assert_allclose(together[k][i], params[k], rtol=2e-6, atol=1e-7)


def test_average_follows_its_formula(x64):
    params = {"a": jnp.float64([1.0, 2.0]), "fixed": None}
    avg, expected = optim.average_init(params), np.array([1.0, 2.0])
    move = jax.jit(lambda avg, params, step: optim.average(avg, params, 0.5, step))
    for step in range(12):
        params = {"a": params["a"] * 1.1, "fixed": None}
        avg = move(avg, params, jnp.int32(step))
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * np.asarray(params["a"])
    assert share == 0.5 and avg["fixed"] is None
    np.testing.assert_allclose(avg["a"], expected, rtol=1e-12)


def test_average_is_a_copy_of_at_least_float32():
    params = {"half": jnp.ones(2, jnp.bfloat16), "single": jnp.ones(2)}
    avg = optim.average_init(params)
    assert avg["half"].dtype == jnp.float32
    assert avg["single"].unsafe_buffer_pointer() != params["single"].unsafe_buffer_pointer()
    assert optim.average(avg, params, 0.9, 0)["half"].dtype == jnp.float32
