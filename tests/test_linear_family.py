"""What linear attention, Performer and retention share, and what each promises of its own."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import cost, masks
from tinyattn.attention.full import dense
from tinyattn.attention.recurrent import _chunks, linear, performer, retention
from tinyattn.masks import Mask

B, T, N, P, I = 2, 13, 3, 5, 4  # noqa: E741


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sums(form, *arrays):
    """A form's sums and their gradients against all it takes, in one program."""
    weight = normal(8, B, T, N, I)

    def loss(*arrays):
        out = form(*arrays)
        return (out * weight).sum(), out

    both = jax.value_and_grad(loss, tuple(range(len(arrays))), has_aux=True)
    (_, out), grads = jax.jit(both)(*arrays)
    return out, *grads


def arrays():
    return normal(0, B, T, N, P), normal(1, B, T, N, P), normal(2, B, T, N, I)


@pytest.mark.parametrize("shape", [None, (N,), (B, T, N)], ids=["none", "constant", "token"])
def test_three_forms_agree_in_outputs_and_gradients(shape):
    given = *arrays(), *([] if shape is None else [-np.abs(normal(5, *shape))])
    want = sums(_chunks.parallel, *given)
    for form in (_chunks.recurrent, functools.partial(_chunks.chunked, chunk=4)):
        for got, exact in zip(sums(form, *given), want, strict=True):
            np.testing.assert_allclose(got, exact, atol=2e-5, rtol=2e-5)


def test_sums_with_decay_by_hand():
    """One head of one feature: each token keeps the share exp(its own log decay) of what came before."""
    one = np.ones((1, 4, 1, 1), np.float32)
    value = np.array([1, 10, 100, 1000], np.float32).reshape(1, 4, 1, 1)
    log_decay = np.log(np.array([0.9, 0.5, 1.0, 0.1], np.float32)).reshape(1, 4, 1)
    for form in (_chunks.parallel, _chunks.recurrent, functools.partial(_chunks.chunked, chunk=2)):
        got = jax.jit(form)(one, one, value, log_decay).ravel()
        np.testing.assert_allclose(got, [1, 10.5, 110.5, 1011.05], rtol=1e-6)


@pytest.mark.parametrize("shape", [(N,), (B, T, N)])
def test_a_decay_of_one_is_no_decay(shape):
    form = jax.jit(functools.partial(_chunks.chunked, chunk=4))
    want, got = form(*arrays()), form(*arrays(), np.zeros(shape, np.float32))
    np.testing.assert_allclose(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("strength", [3.0, 1e4])
def test_strong_decay_over_long_texts_stays_finite(strength):
    """Taken apart into exp(G_t) and exp(-G_s) it would overflow after 30 tokens."""
    arrays = [normal(i, 1, 200, 1, 2) for i in range(3)]
    log_decay = np.full((1, 200, 1), -strength, np.float32)
    both = jax.value_and_grad(lambda *a: _chunks.chunked(*a, chunk=64).sum(), (0, 1, 2, 3))
    got = jax.jit(both)(*arrays, log_decay)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    want = jax.jit(_chunks.parallel)(*arrays, log_decay)
    np.testing.assert_allclose(got[0], want.sum(), rtol=1e-4)


@pytest.mark.parametrize("shape", [(N,), (B, T, N)])
def test_masked_tokens_are_as_if_absent(shape):
    """Neither added nor a step of decay: the rest equals the same sums without them."""
    query, key, value = arrays()
    log_decay = -np.abs(normal(5, *shape))
    kept = np.array([0, 1, 4, 5, 6, 9, 12])
    valid = np.broadcast_to(np.isin(np.arange(T), kept), (B, T))
    dirty = [np.where(valid[..., None, None], x, np.nan) for x in (key, value)]
    chunked = jax.jit(lambda x, *rest: _chunks.chunked(x, *_chunks.masked(*rest), chunk=4))
    got = chunked(query, *dirty, log_decay, valid)[:, kept]
    short = log_decay if log_decay.ndim == 1 else log_decay[:, kept]
    want = jax.jit(_chunks.parallel)(query[:, kept], key[:, kept], value[:, kept], short)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def heads(length, H=6, scale=1.0):
    return [size * normal(i, B, length, N, H) for i, size in enumerate((scale, scale, 1.0))]


def see(module, *heads, mask=Mask(), how="attend", **fields):
    config = module.Config(num_heads=heads[0].shape[2], **fields)
    return jax.jit(functools.partial(getattr(module, how), config))(*heads, mask)


def test_elu_is_the_default_and_by_hand():
    """φ(0) = 1 and φ(1) = 2: a key of ones weighs twice a key of zeros under a query of any kind."""
    key, value = np.array([[0, 1], [3, 9]], np.float32).reshape(2, 1, 2, 1, 1)
    for mask, want in ((Mask(), [7.0, 7.0]), (masks.causal(), [3.0, 7.0])):
        got = see(linear, -key, key, value, mask=mask).ravel()
        np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("H", [1, 2, 5, 6])
def test_taylor_features_give_the_quadratic(H):
    query, key = normal(0, 1, 7, 1, H), normal(1, 1, 7, 1, H)
    features = [np.asarray(jax.jit(linear._taylor)(x))[0, :, 0] for x in (query, key)]
    assert features[0].shape == (7, 1 + H + H * (H + 1) // 2)
    s = query[0, :, 0] @ key[0, :, 0].T
    np.testing.assert_allclose(features[0] @ features[1].T, 1 + s + s**2 / 2, atol=2e-5, rtol=1e-5)


def test_cosine_of_a_long_length_is_plain_relu():
    query, key, value = heads(T)
    got = see(linear, query, key, value, feature_map="relu_cosine", length=10**6)
    weights = np.einsum("btnh,bsnh->bnts", np.maximum(query, 0), np.maximum(key, 0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-9)
    want = np.einsum("bnts,bsnh->btnh", weights, value)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_cosine_needs_a_length_that_does_not_depend_on_the_padding():
    padded = [np.pad(x, ((0, 0), (0, 5), (0, 0), (0, 0))) for x in heads(T)]
    for length, same in ((20, True), (0, False)):
        fields = {"mask": masks.causal(), "feature_map": "relu_cosine", "length": length}
        short, long = see(linear, *heads(T), **fields), see(linear, *padded, **fields)
        assert np.allclose(short, long[:, :T], atol=1e-6) == same
    with pytest.raises(ValueError, match="T=21 and S=21 must be at most length=20"):
        see(linear, *heads(21), feature_map="relu_cosine", length=20)


@pytest.mark.parametrize(
    ("module", "fields", "message"),
    [
        *[(m, {"chunk": 0}, "chunk=0 must be") for m in (linear, performer, retention)],
        (linear, {"feature_map": "relu"}, "feature_map='relu' must be one of"),
        (linear, {"length": 5}, "length=5 must be positive, or 0"),
        (performer, {"features": -1}, "features=-1 must be positive"),
        (performer, {"seed": -1}, "seed=-1 must not be negative"),
    ],
)
def test_illegal_fields_are_named(module, fields, message):
    with pytest.raises(ValueError, match=message):
        module.Config(**fields)


def test_draws_are_orthogonal_within_blocks_and_normal_in_length():
    H = 16
    omega = performer.draws(3, 40, H)
    assert omega.shape == (40, H)
    for block in (omega[:16], omega[16:32], omega[32:]):
        np.testing.assert_allclose(np.tril(block @ block.T, -1), 0, atol=1e-4)
    many = performer.draws(0, 4096, H)
    squares = (many**2).sum(1)
    # Of a chi-squared variable with H degrees of freedom: mean H, variance 2H.
    assert abs(squares.mean() - H) < 4 * math.sqrt(2 * H / 4096)
    assert abs(squares.var() - 2 * H) < 0.2 * 2 * H
    assert np.abs(many.mean(0)).max() < 4 / math.sqrt(4096)
    assert (performer.draws(7, 9, 4) != performer.draws(8, 9, 4)).all()
    # Recorded: another stream would change every model that was trained with it.
    drawn = [[2.6260076, 0.93926984, -0.1378237], [0.62961537, -1.8005335, -0.27435195]]
    np.testing.assert_allclose(performer.draws(0, 2, 3), drawn, rtol=1e-6)


def test_performers_error_falls_as_the_root_of_its_features():
    """Where scores are small; at norms of one and more the features' tails are heavy and it is slower."""
    inputs, counts, errors = heads(12, H=8, scale=0.25), (16, 128, 1024), []
    exact = see(dense, *inputs, mask=masks.causal(), how="reference")
    for count in counts:
        draw = functools.partial(see, performer, *inputs, mask=masks.causal(), features=count)
        outs = [draw(seed=seed) for seed in range(4)]
        errors.append(np.sqrt(np.square(np.stack(outs) - exact).mean()))
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert -0.6 < slope < -0.4, errors


@pytest.mark.parametrize("order", [1, -1])
def test_performer_is_stable_where_norms_of_keys_rise_or_fall(order):
    query, key, value = heads(16, H=8)
    scale = np.repeat(np.array([8, 1], np.float32)[::order], 8)[:, None, None]
    inputs, fields = (query, key * scale, value), {"features": 16, "chunk": 4}
    got = see(performer, *inputs, mask=masks.causal(), **fields)
    want = see(performer, *inputs, mask=masks.causal(), how="reference", **fields)
    np.testing.assert_allclose(got, want, atol=1e-3)


def test_retention_by_hand():
    """Two tokens, a head of width 1: gamma is 31/32 and the row's root is that of 1 + gamma."""
    one = np.ones((1, 2, 1, 1), np.float32)
    value = np.array([1, 10], np.float32).reshape(1, 2, 1, 1)
    gamma, root = 31 / 32, math.sqrt(63 / 32)
    for mask, first in ((masks.causal(), 1.0), (Mask(), (1 + 10 * gamma) / root)):
        got = see(retention, one, one, value, mask=mask).ravel()
        np.testing.assert_allclose(got, [first, (10 + gamma) / root], rtol=1e-6)
    np.testing.assert_allclose(np.exp(retention.log_decays(3)), [31 / 32, 63 / 64, 127 / 128])


def test_retention_of_padded_texts_equals_that_of_the_texts():
    """Padding on either side and in between: distances are those between tokens."""
    inputs, kept = heads(T), np.array([2, 3, 5, 8, 9])
    valid = masks.padding(np.broadcast_to(np.isin(np.arange(T), kept), (B, T)))
    for mask in (Mask(), masks.causal()):
        got = see(retention, *inputs, mask=mask & valid, chunk=4)[:, kept]
        want = see(retention, *[x[:, kept] for x in inputs], mask=mask, chunk=4)
        np.testing.assert_allclose(got, want, atol=1e-5)
    with pytest.raises(ValueError, match="T=5, S=13"):
        see(retention, inputs[0][:, :5], *inputs[1:])


SETTINGS = [(linear, {"feature_map": name}) for name in linear.MAPS]
SETTINGS += [(performer, {}), (retention, {})]


@pytest.mark.parametrize(("module", "fields"), SETTINGS)
@pytest.mark.parametrize("mask", [Mask(), masks.causal()], ids=["full", "causal"])
def test_work_grows_linearly(module, fields, mask):
    executed = []
    for n in (512, 2048, 8192):
        parts = module.flops(module.Config(**fields), mask, D=64, T=n, S=n)
        executed.append(sum(part.executed for part in parts.values()))
    assert executed[1] == 4 * executed[0] and executed[2] == 16 * executed[0]


@pytest.mark.cpu
@pytest.mark.parametrize(("module", "fields"), SETTINGS)
def test_no_table_of_all_pairs_is_held_forward_or_backward(module, fields):
    """Peak bytes grow with the length, not with its square."""
    chosen = module.Config(num_heads=2, **fields)

    def loss(*heads):
        return module.attend(chosen, *heads, masks.causal()).sum()

    def peak(length):
        like = [jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)] * 3
        return cost.peak_bytes(jax.jit(jax.grad(loss, (0, 1, 2))).lower(*like).compile())

    assert peak(4096) < 5 * peak(1024)


def test_taylor_takes_its_weights_from_the_heads():
    """H, not P, multiply-adds for a score within a chunk: 2 C (H + H + 1) a token and head."""
    work = linear.flops(linear.Config(feature_map="taylor"), masks.causal(), D=64, T=640, S=640)
    assert work["within chunks"].executed == 2 * 4 * 640 * 64 * (16 + 17)
    assert work["state"].useful == 2 * 4 * 640 * (1 + 16 + 136) * 17
