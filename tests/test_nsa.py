"""Native sparse attention: each branch alone, the choice by hand, and growth."""

import functools

import jax
import numpy as np
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention.full import dense
from tinyattn.attention.sparse import nsa
from tinyattn.masks import Mask

B, T, N, K, H = 2, 14, 4, 2, 5
COMPRESSED, CHOSEN, WINDOW = np.eye(3)
CAUSAL = masks.causal()


def inputs(config, only=None, T=T, N=N, K=K, seed=0):
    """Random heads and logits of places; gates that open one branch and shut the others, or random ones."""
    rng = np.random.default_rng(seed)
    shapes = {"query": (B, T, N, H), "key": (B, T, K, H), "value": (B, T, K, H)}
    shapes |= dict.fromkeys(["compress_key", "compress_value"], (config.block, K))
    shapes["gate"] = (B, T, N, 3)
    given = {n: rng.standard_normal(shape).astype(np.float32) for n, shape in shapes.items()}
    if only is not None:
        given["gate"] = np.broadcast_to(200 * only - 100, shapes["gate"]).astype(np.float32)
    return given


@functools.cache
def program():
    def attend(config, given, mask):
        return nsa.attend(config, **given, mask=mask)

    return jax.jit(attend, static_argnums=0)


def attend(config, given, mask=CAUSAL):
    return np.asarray(program()(config, given, mask))


@jax.jit
def exact(given, mask=CAUSAL):
    heads = {name: given[name] for name in ("query", "key", "value")}
    return dense.reference(dense.Config(num_heads=N, num_kv_heads=K), **heads, mask=mask)


def make(**fields):
    return nsa.Config(**{"num_heads": N, "num_kv_heads": K, "piece": 4, **fields})


def padded():
    return CAUSAL & masks.padding(np.arange(T)[None] % np.array([[3], [4]]) > 0)


@pytest.mark.parametrize("mask", [CAUSAL, padded(), Mask()], ids=["causal", "padded", "full"])
def test_a_branch_that_holds_all_is_dense_attention(mask):
    for only, fields in (
        (CHOSEN, {"block": 4, "top": 4}),
        (WINDOW, {"window": T}),
        # Blocks of one token are the tokens.
        (COMPRESSED, {"block": 1, "top": 2}),
    ):
        config = make(**fields)
        given = inputs(config, only)
        np.testing.assert_allclose(attend(config, given, mask), exact(given, mask), atol=1e-5)


def test_queries_whose_past_is_within_top_blocks_see_all_of_it():
    config = make(block=3, top=3)
    given = inputs(config, CHOSEN)
    got, want = attend(config, given), np.asarray(exact(given))
    np.testing.assert_allclose(got[:, :9], want[:, :9], atol=1e-5)
    assert np.abs(got[:, 9:] - want[:, 9:]).max((0, 2, 3)).min() > 1e-3


def test_gates_weigh_the_branches():
    config = make(block=3, top=2, window=3)
    given = inputs(config)
    branches = [
        attend(config, given | {"gate": inputs(config, only)["gate"]}) for only in np.eye(3)
    ]
    gates = 1 / (1 + np.exp(-given["gate"]))
    want = sum(gates[..., i, None] * branch for i, branch in enumerate(branches))
    np.testing.assert_allclose(attend(config, given), want, atol=1e-5)


def test_a_block_is_compressed_by_the_softmax_of_its_logits_once_it_has_ended():
    """One block of three has ended: whatever the query, what it reads is that block's value."""
    config = make(block=3, top=2)
    given = inputs(config, COMPRESSED, T=5)
    got = attend(config, given)
    assert (got[:, :2] == 0).all()

    def value_of_first(valid):
        powers = np.exp(given["compress_value"]) * np.array(valid)[:, None]
        mean = np.einsum("ck,bckh->bkh", powers / powers.sum(0), given["value"][:, :3])
        return np.repeat(mean[:, None], N // K, axis=2)

    np.testing.assert_allclose(got[:, 2:], value_of_first([1, 1, 1]).repeat(3, 1), atol=1e-5)
    # The logits of the places that are left share the weight.
    valid = np.array([[True, False, True, True, True]])
    got = attend(config, given, CAUSAL & masks.padding(valid))
    np.testing.assert_allclose(got[:, 2:], value_of_first([1, 0, 1]).repeat(3, 1), atol=1e-5)


def test_logits_of_keys_weigh_keys_only():
    config = make(block=3, top=2)
    given = inputs(config, COMPRESSED)
    first = np.full((3, K), -100.0, np.float32)
    first[0] = 100.0
    got = attend(config, given | {"compress_key": first})
    # Zeros instead of the other keys change nothing, which they do where logits count them.
    sparse = given | {"key": np.where(np.arange(T)[:, None, None] % 3 == 0, given["key"], 0)}
    np.testing.assert_allclose(attend(config, sparse | {"compress_key": first}), got, atol=1e-6)
    assert np.abs(attend(config, sparse) - attend(config, given)).max() > 1e-2


def by_hand(wanted):
    """Ten tokens in blocks of two, whose outputs are the weights of the keys; heads want blocks so much."""
    config = nsa.Config(num_heads=2, num_kv_heads=1, block=2, top=3, piece=3)
    key = np.zeros((1, 10, 1, 10), np.float32)
    key[0, np.arange(10), 0, np.arange(10) // 2] = 1
    query = np.zeros((1, 10, 2, 10), np.float32)
    query[..., :5] = wanted
    return config, {
        "query": query,
        "key": key,
        "value": np.eye(10, dtype=np.float32)[None, :, None],
        "gate": np.broadcast_to(200 * CHOSEN - 100, (1, 10, 2, 3)).astype(np.float32),
        "compress_key": np.zeros((2, 1), np.float32),
        "compress_value": np.zeros((2, 1), np.float32),
    }


def read(problem, t, mask=CAUSAL):
    """Which keys query t mixes: the same ones in both heads."""
    first, second = attend(*problem, mask)[0, t] > 1e-6
    np.testing.assert_array_equal(first, second)
    return list(np.flatnonzero(first))


def test_the_own_the_first_and_the_best_block_by_hand():
    # Block 2 is the best, and block 0, which need not be good, the worst.
    problem = by_hand([-4, 1, 3, 2, 0])
    assert read(problem, 8) == [0, 1, 4, 5, 8]
    assert read(problem, 9) == [0, 1, 4, 5, 8, 9]
    # Block 2 has not ended, and is its own.
    assert read(problem, 4) == [0, 1, 2, 3, 4]
    assert read(problem, 0) == [0]
    # Without a causal mask later blocks are ranked too.
    assert read(problem, 0, Mask()) == [0, 1, 4, 5, 6, 7]


def test_heads_of_a_group_choose_together():
    # One likes block 1, the other block 3: the sum of their probabilities decides.
    assert read(by_hand([[0, 1, 0, 0, 0], [0, 0, 0, 9, 0]]), 8) == [0, 1, 6, 7, 8]
    assert read(by_hand([[0, 9, 0, 0, 0], [0, 0, 0, 1, 0]]), 8) == [0, 1, 2, 3, 8]


def test_a_block_without_a_valid_key_is_not_chosen():
    valid = np.ones((1, 10), bool)
    valid[:, 4:6] = False
    # There its zeros would beat block 1.
    problem = by_hand([0, -1, 3, -2, 0])
    assert read(problem, 8) == [0, 1, 4, 5, 8]
    assert read(problem, 8, CAUSAL & masks.padding(valid)) == [0, 1, 2, 3, 8]


def test_the_choice_has_no_gradient():
    config, given = by_hand([0, 1, 3, 2, 0])

    @jax.jit
    @jax.grad
    def last(key):
        out = nsa.attend(config, **{**given, "key": key}, mask=CAUSAL)
        return (out[0, 9] * np.arange(10)).sum()

    moved = np.abs(last(given["key"])).sum((0, 2, 3))
    np.testing.assert_array_equal(np.flatnonzero(moved), [0, 1, 4, 5, 8, 9])


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_work_grows_linearly_besides_the_compressed_blocks(length):
    config = nsa.Config(num_heads=4, num_kv_heads=2, block=32, top=4, window=16, piece=128)
    parts = nsa.flops(config, CAUSAL, D=32, T=length, S=length)
    per_pair = 2 * 4 * 8
    assert parts["compress"].executed == 2 * 2 * 2 * 8 * length
    assert parts["compressed"].executed == 2 * per_pair * length * length // 32
    assert parts["chosen"].executed == 2 * per_pair * length * 4 * 32
    assert parts["window scores"].executed == parts["window mix"].executed
    assert parts["window mix"].executed == per_pair * length * 31
    # Blocks that have ended, counted one by one; the own block's past and three full ones.
    ended = sum((t + 1) // 32 for t in range(length))
    own = sum(min(t + 1, 96 + t % 32 + 1) for t in range(length))
    assert parts["compressed"].useful == 2 * per_pair * ended
    assert parts["chosen"].useful == 2 * per_pair * own


@pytest.mark.cpu
def test_no_table_of_all_pairs_and_no_copy_of_all_blocks_is_held():
    def peak(length):
        config = nsa.Config(num_heads=1, block=32, window=32)
        found = attention.shapes(nsa, config, D=4, B=1, T=length)
        given = {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in found.items()}
        loss = jax.grad(lambda given: nsa.attend(config, **given, mask=CAUSAL).sum())
        return cost.peak_bytes(jax.jit(loss).lower(given).compile())

    small, large = peak(2048), peak(8192)
    assert large < 5 * small
    assert large < 8192 * 8192 // 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"block": 0}, "block=0 and window=64 must be at least 1"),
        ({"window": 0}, "block=32 and window=0 must be at least 1"),
        ({"piece": -1}, "piece=-1 positive, or 0"),
        ({"top": 1}, "top=1 must be at least 2, a query's own block and the first"),
    ],
)
def test_illegal_values_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        nsa.Config(**fields)


def test_keys_of_another_length_are_refused():
    config = make()
    given = inputs(config)
    given |= {name: given[name][:, :9] for name in ("key", "value")}
    with pytest.raises(ValueError, match="keys of the queries' own sequence: T=14, S=9"):
        nsa.attend(config, **given, mask=CAUSAL)
