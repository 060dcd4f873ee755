"""What DeltaNet promises: it replaces what it holds, its forms agree, and keys alike do not hurt it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import cost, masks
from tinyattn.attention.recurrent import _delta, deltanet
from tinyattn.masks import Mask

B, T, N, H = 2, 21, 2, 3
# The sigmoid of this is 1, and that of its negative nearly 0.
SURE = 40.0


def arrays(T=T, K=N, seed=0, *, gated):
    rng = np.random.default_rng(seed)
    shapes = {"query": (B, T, N, H), "key": (B, T, K, H), "value": (B, T, K, H), "beta": (B, T, N)}
    if gated:
        shapes |= {"decay": (B, T, N), "rate": (N,)}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def config(given, **fields):
    heads = {"num_heads": given["query"].shape[2], "num_kv_heads": given["key"].shape[2]}
    return deltanet.Config(**heads, gated="decay" in given, **fields)


@functools.cache
def attend(chosen):
    return jax.jit(lambda given, mask: deltanet.attend(chosen, **given, mask=mask))


def see(given, mask=Mask(), **fields):
    return np.asarray(attend(config(given, **fields))(given, mask))


def with_gradients(form, given):
    weight = np.random.default_rng(9).standard_normal((B, T, N, H)).astype(np.float32)

    def loss(given):
        out = form(given)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    return {"out": out, **grads}


@pytest.mark.parametrize("gated", [False, True])
def test_chunks_of_any_size_agree_with_the_matrices_in_outputs_and_gradients(gated):
    """Also where the last one is not full, where one holds all, and with padding."""
    given, valid = arrays(K=1, gated=gated), np.random.default_rng(1).random((B, T)) > 0.3

    def form(function, **fields):
        chosen, mask = config(given, **fields), masks.padding(valid)
        return with_gradients(lambda given: function(chosen, **given, mask=mask), given)

    want = form(deltanet.reference)
    for chunk in (8, 64) if gated else (8,):
        got = form(deltanet.attend, chunk=chunk)
        for name, exact in want.items():
            np.testing.assert_allclose(got[name], exact, atol=2e-5, rtol=2e-5, err_msg=name)


def tokens(keys, values, beta, queries=None, **gates):
    """One example and head of width 2; keys and values by rows."""
    heads = [np.array(x, np.float32).reshape(1, -1, 1, 2) for x in (queries or keys, keys, values)]
    given = dict(zip(("query", "key", "value"), heads, strict=True))
    given["beta"] = np.array(beta, np.float32).reshape(1, -1, 1)
    return given | {name: np.array(x, np.float32) for name, x in gates.items()}


def test_what_is_written_under_orthonormal_keys_is_found_exactly():
    """Also under a longer key of the same direction, and the last value only where one is written twice."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    written = [[3.0, -7.0], [5.0, 2.0], [11.0, 13.0]]
    given = tokens([x, y, [4.0, 0.0]], written, [SURE] * 3, queries=[x, x, x])
    for chunk in (1, 2, 4):
        np.testing.assert_allclose(
            see(given, chunk=chunk)[0, :, 0], [written[0], written[0], written[2]], atol=2e-5
        )


def test_strengths_and_decays_by_hand():
    """Each write goes half of the way; gated, half of the state is forgotten first: ln 2 = softplus(0)."""
    x, value = [1.0, 0.0], [[8.0, 16.0]] * 3
    half = tokens([x] * 3, value, [0.0] * 3)
    np.testing.assert_allclose(see(half)[0, :, 0, 0], [4, 6, 7], rtol=1e-5)
    gated = half | {"decay": np.zeros((1, 3, 1), np.float32), "rate": np.zeros(1, np.float32)}
    np.testing.assert_allclose(see(gated)[0, :, 0, 1], [8, 10, 10.5], rtol=1e-5)
    # A rate of 2 squares the decay: 16 / 2, then (1/4) 8 / 2 + 8, and so on.
    gated["rate"] += np.log(2, dtype=np.float32)
    np.testing.assert_allclose(see(gated)[0, :, 0, 1], [8, 9, 9.125], rtol=1e-5)


def test_gates_that_do_not_decay_make_it_deltanet():
    given = arrays(gated=True)
    plain = {name: x for name, x in given.items() if name not in ("decay", "rate")}
    kept = given | {"decay": np.full((B, T, N), -1e3, np.float32)}
    np.testing.assert_allclose(see(kept, chunk=4), see(plain, chunk=4), atol=1e-6)
    assert np.abs(see(given, chunk=4) - see(plain, chunk=4)).max() > 0.1


@pytest.mark.parametrize("C", [1, 2, 64])
@pytest.mark.parametrize("alike", [False, True])
def test_inverse_of_a_triangle(C, alike):
    """Alike are the keys of one word said again and again: powers of this matrix reach 1e17 at C = 64."""
    entries = (
        np.ones((2, C, C)) if alike else np.random.default_rng(0).uniform(-1, 1, (2, C, C)) / 4
    )
    strict = np.tril(entries, -1).astype(np.float32)
    want = np.linalg.inv(np.eye(C) + strict.astype(np.float64))
    np.testing.assert_allclose(jax.jit(_delta.inverted)(strict), want, atol=2e-5)


def double(given):
    """The recurrence in NumPy and double precision, for decays that are given by their logarithms."""
    given = {name: x.astype(np.float64) for name, x in given.items()}
    unit = {
        name: given[name] / np.sqrt((given[name] ** 2).sum(-1, keepdims=True) + 1e-6)
        for name in ("query", "key")
    }
    beta, state, outs = 1 / (1 + np.exp(-given["beta"])), 0.0, []
    logs = np.zeros_like(beta)
    if "decay" in given:
        logs = -np.exp(given["rate"]) * np.logaddexp(0, given["decay"])
    for t in range(beta.shape[1]):
        k = unit["key"][:, t]
        state = np.exp(logs[:, t])[..., None, None] * (np.zeros((*k.shape, H)) + state)
        new = beta[:, t, :, None] * (given["value"][:, t] - np.einsum("bnp,bnpi->bni", k, state))
        state = state + np.einsum("bnp,bni->bnpi", k, new)
        outs.append(np.einsum("bnp,bnpi->bni", unit["query"][:, t], state))
    return np.stack(outs, axis=1)


def test_a_long_text_of_keys_alike_stays_exact():
    given = arrays(256, gated=False)
    given["key"] = given["key"] * 1e-3 + 1
    given["beta"] += 4
    np.testing.assert_allclose(see(given, chunk=64), double(given), atol=1e-5)


def test_weak_decay_after_a_strong_one_keeps_its_digits():
    """Differences of sums from the start of the chunk would have lost them: 1e6 + 0.1 is off by 6%."""
    given = arrays(64, gated=True)
    given["decay"] -= 2
    given["decay"][:, 3] = 1e6
    np.testing.assert_allclose(see(given, chunk=64), double(given), atol=5e-6)


def test_any_gate_has_finite_outputs_and_gradients():
    given = arrays(gated=True)
    chosen = config(given, chunk=8)

    def loss(given):
        out = deltanet.attend(chosen, **given, mask=Mask())
        return out.sum(), out

    both = jax.jit(jax.grad(loss, has_aux=True))
    for size in (1e3, -1e3, 1e30, -1e30):
        gates = {name: np.full_like(given[name], size) for name in ("beta", "decay", "rate")}
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(both(given | gates)))


def test_masked_tokens_are_as_if_absent():
    """They neither write nor decay, whatever is in them: the rest equals the same text without them."""
    given, kept = arrays(gated=True), np.array([0, 1, 4, 5, 6, 9, 12, 20])
    valid, rate = np.isin(np.arange(T), kept), {"rate": given.pop("rate")}

    def where(x):
        return np.where(valid.reshape(1, T, *[1] * (x.ndim - 2)), x, np.nan)

    hidden = masks.padding(np.broadcast_to(valid, (B, T)))
    got = see({name: where(x) for name, x in given.items()} | rate, hidden, chunk=4)[:, kept]
    want = see({name: x[:, kept] for name, x in given.items()} | rate, chunk=4)
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert np.abs(see(given | rate, chunk=4)[:, kept] - want).max() > 0.1


@pytest.mark.parametrize("name", ["beta", "decay"])
def test_a_gate_that_is_not_a_number_reaches_what_comes_after_it_only(name):
    given = arrays(gated=True)
    before = see(given)
    given[name][0, 5, 0] = np.nan
    got = see(given)
    np.testing.assert_array_equal(got[0, :5], before[0, :5])
    np.testing.assert_array_equal(got[1], before[1])
    np.testing.assert_array_equal(got[0, :, 1], before[0, :, 1])
    assert np.isnan(got[0, 5:, 0]).all()


def test_it_is_causal_without_a_mask_too():
    given = arrays(gated=True)
    np.testing.assert_array_equal(see(given), see(given, masks.causal()))
    pairs = deltanet.effective(config(given), Mask(), 4)
    np.testing.assert_array_equal(pairs[0], np.tril(np.ones((4, 4), bool)))


def test_first_decays_are_those_of_the_authors():
    """Rates up to 16 of steps from 0.001 to 0.1, so the state keeps at least exp(-1.6) at the start."""
    module, inputs = (
        deltanet.Attention(deltanet.Config(num_heads=64, gated=True)),
        jnp.zeros((1, 2, 64)),
    )
    params = jax.jit(module.init)(jax.random.PRNGKey(0), inputs)["params"]["decay"]
    size, rate = np.logaddexp(0, params["bias"]), np.exp(params["rate"])
    assert 1e-3 * 0.99 < size.min() < 0.004 and 0.03 < size.max() < 0.101
    assert rate.min() < 2 and 14 < rate.max() <= 16


@pytest.mark.cpu
def test_work_and_memory_grow_linearly():
    chosen = deltanet.Config(num_heads=2, chunk=4, gated=True)
    parts = [deltanet.flops(chosen, Mask(), D=16, T=n, S=n) for n in (512, 2048, 8192)]
    executed = [sum(part.executed for part in work.values()) for work in parts]
    assert executed[1] == 4 * executed[0] and executed[2] == 16 * executed[0]
    # A key finds and writes, a query reads: 6 H^2 FLOPs a token and head.
    assert parts[0]["write"].useful + parts[0]["read"].useful == 512 * 2 * 6 * 8 * 8
    loss = jax.grad(lambda given: deltanet.attend(chosen, **given, mask=Mask()).sum())

    def peak(length):
        shapes = {name: (1, length, 2, 8) for name in ("query", "key", "value")}
        shapes |= {"beta": (1, length, 2), "decay": (1, length, 2), "rate": (2,)}
        like = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
        return cost.peak_bytes(jax.jit(loss).lower(like).compile())

    large = peak(4096)
    assert large < 5 * peak(1024)
    # What is held is of the size of the arrays, of one of which this is the size, or of the states.
    assert large < 40 * 4096 * 2 * 8 * 4


def test_what_does_not_fit_together_is_refused():
    plain, gated = arrays(gated=False), arrays(gated=True)
    for given, fields, message in (
        (gated, {}, r"gated=False does not go with \['decay', 'rate'\]"),
        (plain, {"gated": True}, "gated=True does not go with no arrays"),
        (plain | {"query": plain["query"][:, :5]}, {}, "T=5, S=21"),
    ):
        with pytest.raises(ValueError, match=message):
            deltanet.attend(deltanet.Config(num_heads=N, **fields), **given, mask=Mask())
    with pytest.raises(ValueError, match=r"chunk=48 must be a power of two.* try 32 or 64"):
        deltanet.Config(chunk=48)
