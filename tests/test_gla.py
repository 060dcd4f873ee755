"""What gated linear attention promises: its forms agree, and no decay is too strong for any of them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention.recurrent import _chunks, gla
from tinyattn.masks import Mask

B, T, N, H = 2, 21, 2, 3


def arrays(T=T, K=N, seed=0, **gates):
    rng = np.random.default_rng(seed)
    shapes = {"query": (B, T, N, H), **dict.fromkeys(("key", "value", "gate"), (B, T, K, H))}
    given = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    return given | gates


def config(given, **fields):
    return gla.Config(
        **{"num_heads": N, "num_kv_heads": given["key"].shape[2], "tau": 1.0, **fields}
    )


@functools.cache
def attend(chosen):
    return jax.jit(lambda given, mask: gla.attend(chosen, **given, mask=mask))


def see(given, mask=Mask(), **fields):
    return np.asarray(attend(config(given, **fields))(given, mask))


def with_gradients(form, given):
    weight = np.random.default_rng(9).standard_normal((B, T, N, H)).astype(np.float32)

    def loss(given):
        out = form(given)
        return (out * weight).sum(), out

    (_, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(given)
    return {"out": out, **grads}


def test_chunks_of_any_size_agree_with_all_pairs_in_outputs_and_gradients():
    """Also where the last one is not full, where one holds all, and with padding."""
    given, valid = arrays(K=1), np.random.default_rng(1).random((B, T)) > 0.3

    def form(function, **fields):
        chosen, mask = config(given, **fields), masks.padding(valid)
        return with_gradients(lambda given: function(chosen, **given, mask=mask), given)

    want = form(gla.reference)
    for chunk in (8, 64):
        got = form(gla.attend, chunk=chunk)
        for name, exact in want.items():
            np.testing.assert_allclose(got[name], exact, atol=2e-5, rtol=2e-5, err_msg=name)


def test_each_feature_forgets_at_its_own_rate_by_hand():
    """Of two features of ones the first keeps the shares below, the second forgets all at once."""
    keep = np.array([0.9, 0.5, 0.25, 0.1], np.float32)
    gate = np.stack([np.log(keep / (1 - keep)), np.full(4, -1e4)], axis=-1).reshape(1, 4, 1, 2)
    value = np.array([1.0, 10.0, 100.0, 1000.0]).reshape(1, 4, 1, 1).repeat(2, axis=-1)
    one = np.ones((1, 4, 1, 2), np.float32)
    first = [1, 10.5, 102.625, 1010.2625]
    for tau, sums in ((1.0, first), (2.0, [1, 10 + 0.5**0.5])):
        got = see({"query": one, "key": one, "value": value, "gate": gate}, num_heads=1, tau=tau)
        want = (np.array(sums) + value[0, : len(sums), 0, 0]) / 2**0.5
        np.testing.assert_allclose(got[0, : len(sums), 0, 1], want, rtol=1e-6)


def test_gates_that_are_open_make_it_causal_linear_attention():
    given = arrays()
    sums = _chunks.parallel(given["query"], given["key"], given["value"])
    opened = given | {"gate": np.full((B, T, N, H), 1e4, np.float32)}
    np.testing.assert_allclose(see(opened, chunk=4), sums / H**0.5, atol=1e-5)
    assert np.abs(see(given, chunk=4) - sums / H**0.5).max() > 0.1


def test_it_is_causal_without_a_mask_too():
    given = arrays()
    np.testing.assert_array_equal(see(given), see(given, masks.causal()))
    pairs = gla.effective(config(given), Mask(), 4)
    np.testing.assert_array_equal(pairs[0], np.tril(np.ones((4, 4), bool)))


def test_strong_decay_leaves_each_token_its_own():
    """A chunk of 64 would overflow if its decays were taken apart into exp(G_t) exp(-G_s)."""
    given = arrays(150)
    chosen = config(given, chunk=64)

    def loss(given):
        out = gla.attend(chosen, **given, mask=Mask())
        return out.sum(), out

    both = jax.jit(jax.grad(loss, has_aux=True))
    own = (given["query"] * given["key"]).sum(-1, keepdims=True) * given["value"] / H**0.5
    for strength in (1e2, 1e4, 1e30):
        grads, out = both(given | {"gate": np.full_like(given["gate"], -strength)})
        np.testing.assert_allclose(out, own, atol=1e-6)
        assert all(np.isfinite(grad).all() for grad in grads.values())


def test_weak_decay_after_a_strong_one_keeps_its_digits():
    """Differences of sums from the start of the chunk would have lost them: 1e6 + 0.1 is off by 6%."""
    given = arrays(64)
    # Logits of about 2 decay by about 0.1 a token.
    gate = given["gate"] * 0.1 + 2
    gate[:, 3] = -1e6
    got = see(given | {"gate": gate}, chunk=64)
    # In double precision, token by token.
    keep, state = (
        1 / (1 + np.exp(np.minimum(-gate.astype(np.float64), 700))),
        np.zeros((B, N, H, H)),
    )
    for t in range(64):
        state = keep[:, t, ..., None] * state
        state += np.einsum("bnp,bni->bnpi", given["key"][:, t], given["value"][:, t])
        want = np.einsum("bnp,bnpi->bni", given["query"][:, t], state) / H**0.5
        np.testing.assert_allclose(got[:, t], want, atol=5e-6)


def test_masked_tokens_are_as_if_absent():
    """They neither add nor decay, whatever is in them: the rest equals the same text without them."""
    given, kept = arrays(), np.array([0, 1, 4, 5, 6, 9, 12, 20])
    valid = np.isin(np.arange(T), kept)
    dirty = {name: np.where(valid[:, None, None], x, np.nan) for name, x in given.items()}
    hidden = masks.padding(np.broadcast_to(valid, (B, T)))
    got = see(dirty, hidden, chunk=4)[:, kept]
    want = see({name: x[:, kept] for name, x in given.items()}, chunk=4)
    np.testing.assert_allclose(got, want, atol=1e-5)
    without = see(given, chunk=4)[:, kept]
    assert np.abs(without - want).max() > 0.1


def test_a_gate_that_is_not_a_number_reaches_what_comes_after_it_only():
    given = arrays()
    before = see(given)
    given["gate"][0, 5, 0] = np.nan
    got = see(given)
    np.testing.assert_array_equal(got[0, :5], before[0, :5])
    np.testing.assert_array_equal(got[1], before[1])
    np.testing.assert_array_equal(got[0, :, 1], before[0, :, 1])
    assert np.isnan(got[0, 5:, 0]).all()


def test_query_heads_of_a_group_share_key_value_and_gate():
    given = arrays(K=1)
    several = {name: x.repeat(N, axis=2) if x.shape[2] == 1 else x for name, x in given.items()}
    np.testing.assert_allclose(see(given), see(several), atol=1e-6)


def test_the_gate_is_of_low_rank_and_of_the_width_of_the_keys():
    chosen = gla.Config(num_heads=4, num_kv_heads=2, rank=3)
    params = jax.eval_shape(
        gla.Attention(chosen).init, jax.random.PRNGKey(0), jnp.ones((1, 5, 24))
    )["params"]
    assert params["gate_in"]["kernel"].shape == (24, 3)
    assert params["gate"]["kernel"].shape == (3, 2 * 6)
    assert attention.shapes(gla, chosen, D=24, B=1, T=5)["gate"] == (1, 5, 2, 6)


def test_within_chunks_only_pairs_of_the_past_are_worked_on():
    """C (C + 1) / 2 pairs in a chunk, 4 H FLOPs a pair; states are of key heads."""
    chosen = gla.Config(num_heads=4, num_kv_heads=2, chunk=16)
    work = gla.flops(chosen, Mask(), D=24, T=40, S=40)
    assert work["within chunks"].executed == 3 * 4 * (16 * 17 // 2) * 4 * 6
    assert work["state"].useful == 40 * 2 * 2 * 6 * 6
    assert work["read"].useful == 2 * work["state"].useful
    executed = []
    for n in (512, 2048, 8192):
        parts = gla.flops(chosen, Mask(), D=24, T=n, S=n)
        executed.append(sum(part.executed for part in parts.values()))
    assert executed[1] == 4 * executed[0] and executed[2] == 16 * executed[0]


@pytest.mark.cpu
def test_memory_grows_with_the_length_forward_and_backward():
    chosen = gla.Config(num_heads=2, chunk=4)
    loss = jax.grad(lambda given: gla.attend(chosen, **given, mask=Mask()).sum())

    def peak(length):
        shape = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
        given = dict.fromkeys(("query", "key", "value", "gate"), shape)
        return cost.peak_bytes(jax.jit(loss).lower(given).compile())

    large = peak(4096)
    assert large < 5 * peak(1024)
    # What is held is of the size of the arrays, of one of which this is the size.
    assert large < 24 * 4096 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"chunk": 6}, "chunk=6 must be a power of two.* try 4 or 8"),
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"tau": 0.0}, "tau=0.0 positive"),
        ({"tau": float("nan")}, "tau=nan positive"),
    ],
)
def test_illegal_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        gla.Config(**fields)


def test_keys_of_another_sequence_are_refused():
    given = arrays()
    short = functools.partial(gla.attend, config(given), given["query"][:, :5], given["key"])
    with pytest.raises(ValueError, match="T=5, S=21"):
        short(given["value"], Mask(), given["gate"])
