"""Linformer: limits in which it is dense or a mean, the columns of E and F, growth and refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import cost, masks
from tinyattn.attention.full import dense
from tinyattn.attention.lowrank import linformer
from tinyattn.masks import Mask

B, T, N, K, H = 2, 13, 4, 2, 3


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def heads(S=T):
    return normal(0, B, T, N, H), normal(1, B, S, K, H), normal(2, B, S, K, H)


def run(config, *args):
    return jax.jit(functools.partial(linformer.attend, config))(*args)


def config(**fields):
    return linformer.Config(num_heads=N, num_kv_heads=K, **fields)


@pytest.mark.parametrize("S", [T, 9])
def test_identities_are_dense_attention(S):
    eye = np.eye(S, dtype=np.float32)
    want = dense.reference(dense.Config(num_kv_heads=K), *heads(S), Mask())
    np.testing.assert_allclose(
        run(config(k=S, length=S), *heads(S), Mask(), eye, eye), want, atol=1e-5
    )
    shared = config(k=S, length=S, share="kv")
    np.testing.assert_allclose(run(shared, *heads(S), Mask(), eye), want, atol=1e-5)
    # Of one key less it is another function.
    short = config(k=S - 1, length=S)
    less = run(short, *heads(S), Mask(), eye[: S - 1], eye[: S - 1])
    assert np.abs(less - want).max() > 0.1


def test_one_mixture_is_what_all_queries_get():
    query, key, value = heads()
    E, F = normal(3, 1, T), np.full((1, T), 1 / T, np.float32)
    got = run(config(k=1, length=T), query, key, value, Mask(), E, F)
    want = np.repeat(value.mean(1, keepdims=True), N // K, axis=2).repeat(T, axis=1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_two_mixtures_by_hand():
    query = np.array([np.log(3), 0], np.float32).reshape(1, 2, 1, 1)
    key = np.array([1.0, 2], np.float32).reshape(1, 2, 1, 1)
    E = np.array([[3, -1], [0, 0]], np.float32)  # keys 1 and 0
    F = np.array([[1, 1], [0, 10]], np.float32)  # values 3 and 20
    got = run(linformer.Config(num_heads=1, k=2, length=2), query, key, key, Mask(), E, F).ravel()
    np.testing.assert_allclose(got, [(3 * 3 + 20) / 4, 23 / 2], rtol=1e-6)


def test_a_shorter_sequence_takes_the_first_columns():
    E, F = normal(3, 5, T), normal(4, 5, T)
    want = run(config(k=5, length=T), *heads(), Mask(), E, F)
    more = np.full((5, 4), np.nan, np.float32)
    wide = [np.concatenate([x, more], axis=1) for x in (E, F)]
    got = run(config(k=5, length=T + 4), *heads(), Mask(), *wide)
    np.testing.assert_array_equal(got, want)


def test_padding_at_the_end_is_as_if_absent():
    query, key, value = heads()
    E, F = normal(3, 5, T), normal(4, 5, T)
    shown = masks.padding(np.broadcast_to(np.arange(T) < 8, (B, T)))
    dirty = [np.where(np.arange(T)[:, None, None] < 8, x, np.nan) for x in (key, value)]
    got = run(config(k=5, length=T), query, *dirty, shown, E, F)
    want = run(config(k=5, length=T), query, key[:, :8], value[:, :8], Mask(), E, F)
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize("share", ["heads", "kv"])
def test_sharing_is_the_same_matrix_again(share):
    E, F = normal(3, 5, T), normal(4, 5, T)
    given = (E, F) if share == "heads" else (E,)
    got = run(config(k=5, length=T, share=share), *heads(), Mask(), *given)
    each = [np.stack([x] * K) for x in (E, F if share == "heads" else E)]
    own = config(k=5, length=T, share="none")
    np.testing.assert_allclose(run(own, *heads(), Mask(), *each), got, atol=1e-6)
    each[1][1] += 1
    other = run(own, *heads(), Mask(), *each)
    np.testing.assert_allclose(other[:, :, :2], got[:, :, :2], atol=1e-6)
    assert np.abs(other[:, :, 2:] - got[:, :, 2:]).max() > 0.1


@pytest.mark.parametrize(
    ("share", "shapes"),
    [
        ("none", {"E": (K, 5, 20), "F": (K, 5, 20)}),
        ("heads", {"E": (5, 20), "F": (5, 20)}),
        ("kv", {"E": (5, 20)}),
    ],
)
def test_parameters_by_what_is_shared(share, shapes):
    layer, x = linformer.Attention(config(k=5, length=20, share=share)), normal(5, B, T, 8)
    params = jax.jit(layer.init)(jax.random.PRNGKey(0), x)["params"]
    assert {name: leaf.shape for name, leaf in params["mixtures"].items()} == shapes
    grads = jax.jit(jax.grad(lambda p: jnp.square(layer.apply({"params": p}, x)).sum()))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 1e-4, path


@pytest.mark.parametrize("length", [512, 8192])
def test_work_grows_linearly(length):
    fields = linformer.Config(num_heads=2, num_kv_heads=1, k=32, length=8192)
    valid = masks.padding(np.arange(length)[None] < length // 4)
    work = linformer.flops(fields, valid, D=8, T=length, S=length)
    # Two heads of four; one of keys.
    mixture, pairs = 2 * 4 * 32 * length, 2 * 2 * 4 * 32 * length
    core = {name: part for name, part in work.items() if not part.projection}
    assert {name: part.executed for name, part in core.items()} == {
        "keys to mixtures": mixture,
        "values to mixtures": mixture,
        "scores": pairs,
        "mix": pairs,
    }
    assert [part.useful for part in core.values()] == [mixture / 4, mixture / 4, pairs, pairs]


@pytest.mark.cpu
def test_memory_grows_linearly_without_a_table_of_scores():
    def peak(length, k=8):
        fields = linformer.Config(num_heads=1, k=k, length=length)
        x = jax.ShapeDtypeStruct((1, length, 1, H), jnp.float32)
        E = jax.ShapeDtypeStruct((k, length), jnp.float32)

        def loss(*given):
            return linformer.attend(fields, *given[:3], Mask(), *given[3:]).sum()

        gradient = jax.jit(jax.grad(loss, (0, 1, 2, 3, 4)))
        return cost.peak_bytes(gradient.lower(x, x, x, E, E).compile())

    assert 3.5 < peak(32768) / peak(8192) < 4.5
    # E and F and what they move by are as large as such tables; with one more it was over four of them.
    assert peak(8192, k=64) < 3 * 4 * 8192 * 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"k": 0}, "k=0 must be at least 1"),
        ({"k": 9, "length": 8}, "k=9 must be at least 1 and at most length=8"),
        ({"share": "all"}, "share='all' must be one of none, heads, kv"),
    ],
)
def test_illegal_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        linformer.Config(**fields)


def test_a_sequence_that_is_too_long_is_refused():
    E = normal(3, 5, 12)
    with pytest.raises(ValueError, match="sequence of 13 tokens does not fit length=12"):
        linformer.attend(config(k=5, length=12), *heads(), Mask(), E, E)
