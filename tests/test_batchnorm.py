"""Batch norm: statistics of the tokens that count, and averages that no gradient moves."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from tests.test_train import TINY, close, fit, order, same_bits
from tinyattn import config, model, optim, train, weights
from tinyattn.model import _norm

RNG = jax.random.PRNGKey(0)
X = np.random.default_rng(0).normal(1.0, 2.0, (3, 5, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=X.shape).astype(np.float32)
VALID = np.arange(5) < np.array([[5], [2], [3]])
PARAMS = {
    "scale": jnp.array([0.5, 1.0, -1.0, 2.0]),
    "bias": jnp.arange(4.0),
    "mean": jnp.array([0.3, 0.1, -0.2, 0.0]),
    "var": jnp.array([1.0, 2.0, 0.5, 1.0]),
}


@jax.jit
def ours(params, x, weight, valid):
    """Output, moved averages and gradients in training; and the output in evaluation."""

    def loss(params, x):
        given = {"params": params}, x, _norm.Batch(valid, None)
        y, moved = _norm.BatchNorm().apply(*given, mutable=[weights.MOVED])
        return (y * weight).sum(), (y, moved[weights.MOVED])

    grads, out = jax.grad(loss, (0, 1), has_aux=True)(params, x)
    return out, grads, _norm.BatchNorm().apply({"params": params}, x)


@jax.jit
def flax(params, x, weight):
    stats, learned = (
        {k: params[k] for k in names} for names in (["mean", "var"], ["scale", "bias"])
    )
    options = {"momentum": 0.9, "epsilon": 1e-5, "use_fast_variance": False}

    def loss(learned, x):
        layer = nn.BatchNorm(use_running_average=False, **options)
        given = {"params": learned, "batch_stats": stats}
        y, moved = layer.apply(given, x, mutable=["batch_stats"])
        return (y * weight).sum(), (y, moved["batch_stats"])

    grads, out = jax.grad(loss, (0, 1), has_aux=True)(learned, x)
    layer = nn.BatchNorm(use_running_average=True, **options)
    return out, grads, layer.apply({"params": learned, "batch_stats": stats}, x)


def test_it_is_flax_s_where_nothing_is_padding():
    (y, moved), (dparams, dx), still = ours(PARAMS, X, WEIGHT, np.ones((3, 5), bool))
    (want, stats), (dlearned, dwant), running = flax(PARAMS, X, WEIGHT)
    jax.tree.map(close, (y, moved, dx, still), (want, stats, dwant, running))
    jax.tree.map(close, {k: dparams[k] for k in dlearned}, dlearned)
    assert np.abs(y - still).max() > 0.1 and np.abs(moved["mean"] - PARAMS["mean"]).max() > 0.01


def test_padding_does_not_count():
    """With padding it is Flax's of the other tokens alone; not even NaN there changes a bit."""
    (y, moved), (dparams, dx), _ = ours(PARAMS, X, WEIGHT * VALID[..., None], VALID)
    (want, stats), (dlearned, dwant), _ = flax(PARAMS, X[VALID], WEIGHT[VALID])
    jax.tree.map(close, (y[VALID], moved, dx[VALID]), (want, stats, dwant))
    jax.tree.map(close, {k: dparams[k] for k in dlearned}, dlearned)
    assert not dx[~VALID].any()
    dirty = np.where(VALID[..., None], X, 1e6)
    (again, others), (_, dagain), _ = ours(PARAMS, dirty, WEIGHT * VALID[..., None], VALID)
    same_bits((y[VALID], moved, dx), (again[VALID], others, dagain))
    (again, others), _, _ = ours(PARAMS, np.where(VALID[..., None], X, np.nan), WEIGHT, VALID)
    same_bits((y[VALID], moved), (again[VALID], others))


def test_a_model_s_statistics_see_no_padding():
    """What stands at padding moves no logit and no average; scanned layers move the same."""
    fields = {"inputs": "tokens", "vocab_size": 9, "width": 8, "ffn_width": 8, "num_classes": 3}
    fields |= {"norm": "batchnorm", "max_length": 8}
    ids = np.random.default_rng(2).integers(1, 9, (3, 5))
    draw = np.random.default_rng(3)

    def passed(scan, params, ids):
        made = model.build(model.spec(**fields, scan=scan))
        given = {"params": params}, ids, VALID
        logits, moved = made.apply(*given, rng=RNG, mutable=[weights.MOVED])
        return logits, moved[weights.MOVED]

    like = jax.eval_shape(lambda: model.build(model.spec(**fields)).init(RNG, ids, VALID))["params"]
    params = jax.tree.map(lambda x: draw.uniform(0.1, 1, x.shape).astype(np.float32), like)
    before = jax.jit(functools.partial(passed, False))(params, ids)
    run = jax.jit(functools.partial(passed, True))
    scanned = run(params, ids)
    jax.tree.map(close, before, scanned)
    same_bits(scanned, run(params, np.where(VALID, ids, 7)))
    names = {"norm", "block_0", "block_1"}
    assert names == set(before[1]) and {"mean", "var"} == set(before[1]["norm"])


def make(changes):
    changes = TINY | {"model.norm": "batchnorm", "model.num_layers": 2, "task.shift": 0} | changes
    return train.make(config.override(digits.get_config(), changes))


@pytest.fixture(scope="module")
def rich():
    shared = (weights.spec("share", leaves="block_"),)
    return make({"train.micro_batches": 2, "train.ema_decay": 0.9, "weights": shared})


def moved(theta):
    """Path to value of the running averages."""
    found = weights.leaves(theta).items()
    return {path: x.value for path, x in found if isinstance(x, weights.Moved)}


def test_a_step_moves_the_averages_and_the_optimiser_does_not(rich):
    state = rich.init(0)
    assert len(moved(state.rest)) == 2 * 5 and not moved(state.trainable)
    assert not any(path.endswith(("mean", "var")) for path in weights.leaves(state.trainable))
    batch = jax.tree.map(lambda x: jnp.asarray(x[:16]), rich.task.train)
    after, _ = jax.jit(rich.step)(state, batch)

    @jax.jit
    def part(inputs):
        given = {"params": weights.fold(weights.combine(state.trainable, state.rest))}, inputs
        return rich.model.apply(*given, rng=RNG, mutable=[weights.MOVED])[1][weights.MOVED]

    halves = [weights.leaves(part(batch.inputs[i : i + 8])) for i in (0, 8)]
    want = {path: (x + halves[1][path]) / 2 for path, x in halves[0].items()}
    jax.tree.map(close, moved(after.rest), want)
    averaged = optim.average(moved(state.average), moved(after.rest), 0.9, 0)
    jax.tree.map(close, moved(after.average), averaged)
    same_bits(moved(after.theta), moved(after.average))
    # Layers that share their weights keep averages of their own.
    own = [moved(after.rest)[f"block_{i}/norm_ffn/mean"] for i in (0, 1)]
    assert np.abs(own[0] - own[1]).max() > 1e-4


def test_a_run_is_resumed_to_the_bit_and_seeds_run_side_by_side(rich, tmp_path):
    (whole,) = fit(rich, tmp_path / "whole")

    def stop(progress):
        if progress.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(rich, tmp_path / "cut", report=stop)
    (again,) = fit(rich, tmp_path / "cut")
    same_bits(again.theta, whole.theta)
    assert again.history == whole.history
    together = fit(rich, tmp_path / "all", (0, 1))
    jax.tree.map(close, together[0].theta, whole.theta)

    # The averages are in the file, in what is evaluated and in the bytes, and start another run.
    path = tmp_path / "theta.safetensors"
    weights.save(path, whole.theta)
    split = rich.task.validation
    found = [train.evaluate(rich, theta, split) for theta in (whole.theta, weights.load(path))]
    same_bits(*found)
    still = weights.move(whole.theta, jax.tree.map(np.zeros_like, moved(whole.theta)))
    assert np.abs(train.evaluate(rich, still, split).losses - found[0].losses).max() > 1e-2
    sizes = weights.sizes(whole.theta)
    assert sizes.bytes == weights.read(path).data == 4 * sizes.params
    assert sizes.params - sizes.trainable == 2 * 5 * TINY["model.width"]
    started = make({"train.pretrained": str(path)}).init(3)
    same_bits(moved(started.rest), moved(whole.theta))


def test_devices_take_the_statistics_of_the_whole_batch():
    plain = {"optim.optimizer": "sgd", "optim.clip_norm": 0.0}  # Adam sees no factor
    plain |= {"model.num_layers": 1, "model.norm_place": "post"}
    whole, split = make(plain), make(plain | {"train.data_devices": 2})
    indices = jnp.asarray(order(whole, 0, 0, 2))
    data = jax.tree.map(jnp.asarray, whole.task.train)
    one, two = (p.run(p.init(0), data, indices)[0] for p in (whole, split))
    jax.tree.map(close, (one.trainable, one.rest), (two.trainable, two.rest))


@pytest.mark.parametrize("changes", [{"causal": True}, {"decoder_layers": 1, "pool": "none"}])
def test_no_token_may_see_those_after_it(changes):
    with pytest.raises(ValueError, match="must not see those after it; choose 'layernorm'"):
        model.build(model.spec(norm="batchnorm", **changes))
