"""Attention that chooses keys by content, and by landmarks: facts computed by hand, and growth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks
from tinyattn.attention.full import dense
from tinyattn.attention.lowrank import nystrom
from tinyattn.attention.sparse import moba, topk
from tinyattn.masks import Mask

B, T, N, H = 2, 12, 2, 4


def heads(T=T, N=N, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((B, T, N, H)).astype(np.float32) for _ in range(3)]


@functools.partial(jax.jit, static_argnums=(0, 1))
def attend(module, config, query, key, value, mask):
    return module.attend(config, query, key, value, mask)


@jax.jit
def reference(query, key, value, mask):
    return dense.reference(dense.Config(num_heads=N), query, key, value, mask)


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def core(name, length, mask=Mask(), **fields):
    """Executed FLOPs by part, without the projections; two heads of four."""
    module, config = attention.build(attention.spec(name, num_heads=2, **fields))
    parts = module.flops(config, mask, D=8, T=length, S=length)
    return {n: w.executed for n, w in parts.items() if n not in ("query", "key", "value", "out")}


def peak(module, config, length, mask):
    """Bytes of a gradient at one example and one head."""
    x = jax.ShapeDtypeStruct((1, length, 1, H), jnp.float32)
    loss = jax.grad(lambda *x: module.attend(config, *x, mask).sum(), (0, 1, 2))
    return cost.peak_bytes(jax.jit(loss).lower(x, x, x).compile())


def test_one_landmark_gives_all_queries_the_mix_of_their_mean():
    query, key, value = heads()
    got = attend(nystrom, nystrom.Config(num_heads=N, landmarks=1), query, key, value, Mask())
    weights = softmax(np.einsum("bnh,bsnh->bns", query.mean(1), key) / H**0.5)
    want = np.einsum("bns,bsnh->bnh", weights, value)[:, None].repeat(T, 1)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_nystrom_converges_to_the_exact_pseudo_inverse():
    """Runs of four tokens, by NumPy in double precision; six steps are not there yet."""
    query, key, value = (3 * np.asarray(x, np.float64) for x in heads())
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (query / H**0.5, key, value))
    mean_q, mean_k = (x.reshape(B, N, 3, 4, H).mean(3) for x in (q, k))
    near = softmax(q @ mean_k.swapaxes(2, 3))
    middle = np.linalg.pinv(softmax(mean_q @ mean_k.swapaxes(2, 3)))
    far = softmax(mean_q @ k.swapaxes(2, 3))
    want = (near @ middle @ far @ v).transpose(0, 2, 1, 3)
    inputs = [x.astype(np.float32) for x in (query, key, value)]

    def error(iterations):
        config = nystrom.Config(num_heads=N, landmarks=3, iterations=iterations)
        return np.abs(attend(nystrom, config, *inputs, Mask()) - want).max() / np.abs(want).max()

    assert error(20) < 5e-6 < 0.5 < error(2)


def test_padding_anywhere_moves_no_landmark():
    places = np.sort(np.random.default_rng(0).permutation(19)[:T])
    config, inputs = nystrom.Config(num_heads=N, landmarks=5), heads()
    valid = np.zeros((B, 19), bool)
    valid[:, places] = True
    padded = [np.full((B, 19, N, H), np.nan, np.float32) for _ in inputs]
    for x, given in zip(padded, inputs, strict=True):
        x[:, places] = given
    got = np.asarray(attend(nystrom, config, *padded, masks.padding(valid)))[:, places]
    np.testing.assert_allclose(got, attend(nystrom, config, *inputs, Mask()), atol=1e-5)


def test_fewer_tokens_than_landmarks_are_their_own_landmarks():
    mask = masks.padding(np.arange(T)[None] < np.array([[2], [4]]))
    config = nystrom.Config(num_heads=N, landmarks=7, iterations=20)
    inputs = heads()
    got, want = np.asarray(attend(nystrom, config, *inputs, mask)), reference(*inputs, mask)
    # Only queries that are landmarks: another one is approximated.
    np.testing.assert_allclose(got[0, :2], want[0, :2], atol=1e-3)
    np.testing.assert_allclose(got[1, :4], want[1, :4], atol=1e-3)


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_nystrom_work_grows_linearly(length):
    m = 16
    total = sum(core("nystrom", length, landmarks=m).values())
    assert total == 2 * (8 * length * m * 4 + 4 * m * m * 4 + 6 * 8 * m**3)


@pytest.mark.cpu  # where alone blocks are of few queries, if keys are few
def test_nystrom_holds_no_table_of_queries_and_landmarks():
    config, length = nystrom.Config(num_heads=1, landmarks=256, iterations=1), 8192
    padded = masks.padding(np.arange(length)[None] < length - 5)
    for mask in (Mask(), padded):
        # A score is four bytes.
        assert peak(nystrom, config, length, mask) < 4 * length * config.landmarks


def test_the_best_key_of_each_query_by_hand():
    query = np.array([[1.0, 0], [0, 1], [-1, 0]]).reshape(1, 3, 1, 2)
    key = np.array([[1.0, 5], [2, 5], [2, 4]]).reshape(1, 3, 1, 2)
    value = np.array([[1.0, 10], [2, 20], [3, 30]]).reshape(1, 3, 1, 2)
    got = np.asarray(attend(topk, topk.Config(num_heads=1, k=1), query, key, value, Mask()))
    # The first two queries have two best keys each, of which the first counts.
    np.testing.assert_array_equal(got[0, :, 0, 0], [2, 1, 1])
    causal = np.asarray(
        attend(topk, topk.Config(num_heads=1, k=1), query, key, value, masks.causal())
    )
    np.testing.assert_array_equal(causal[0, :, 0, 0], [1, 1, 1])
    # With two, the second query mixes a tie evenly.
    both = np.asarray(attend(topk, topk.Config(num_heads=1, k=2), query, key, value, Mask()))
    np.testing.assert_allclose(both[0, 1, 0], [1.5, 15])


def test_only_kept_pairs_have_gradients():
    query, key, value = heads(N=1)
    config = topk.Config(num_heads=1, k=3)

    def last(key, value):
        return attend(topk, config, query, key, value, masks.causal())[:, -1].sum()

    dkey, dvalue = jax.jit(jax.grad(last, (0, 1)))(key, value)
    scores = np.einsum("bh,bsh->bs", query[:, -1, 0], key[:, :, 0])
    kept = np.sort(np.argsort(-scores, axis=-1)[:, :3])
    for grad in (dkey, dvalue):
        moved = [np.flatnonzero(np.abs(g).sum((1, 2))) for g in np.asarray(grad)]
        np.testing.assert_array_equal(moved, kept)


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_the_choice_of_top_k_is_dense_and_attention_is_not(length):
    assert core("topk", length, k=16) == {
        "choice": 2 * 8 * length * length,
        "scores": 2 * 8 * length * 16,
        "mix": 2 * 8 * length * 16,
    }


def test_useful_pairs_are_at_most_k_a_query():
    valid = np.arange(T)[None] < np.array([[2], [T]])
    config = topk.Config(num_heads=1, head_dim=1, k=3)
    work = topk.flops(config, masks.padding(valid), D=1, T=T, S=T)
    assert work["mix"].useful == 2 * (2 * T + 3 * T) / 2


@pytest.mark.cpu
@pytest.mark.parametrize(
    ("module", "fields"),
    [(topk, {"k": 4}), (moba, {"block": 64, "top": 8})],
    ids=["topk", "moba"],
)
def test_no_table_of_all_pairs_is_held(module, fields):
    length = 4096
    assert (
        peak(module, module.Config(num_heads=1, **fields), length, masks.causal())
        < length * length // 4
    )


def blocks_of_two():
    """Six tokens in three blocks: the first block's keys point along the query, the second's away."""
    query = np.ones((1, 6, 1, 1), np.float32)
    key = np.array([1, 1, -1, -1, 0, 0], np.float32).reshape(1, 6, 1, 1)
    return query, key, 2 ** np.arange(6, dtype=np.float32).reshape(1, 6, 1, 1)


def mix(places):
    _, key, value = (x.ravel() for x in blocks_of_two())
    return softmax(key[places]) @ value[places]


def test_the_own_and_the_best_past_block_by_hand():
    config = moba.Config(num_heads=1, block=2, top=2)
    got = np.ravel(attend(moba, config, *blocks_of_two(), masks.causal()))
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [0, 1, 4, 5]]
    np.testing.assert_allclose(got, [mix(places) for places in seen], rtol=1e-6)


def test_without_a_causal_mask_a_later_block_may_be_the_best():
    config = moba.Config(num_heads=1, block=2, top=2)
    got = np.ravel(attend(moba, config, *blocks_of_two(), Mask()))
    seen = [[0, 1, 4, 5]] * 2 + [[0, 1, 2, 3]] * 2 + [[0, 1, 4, 5]] * 2
    np.testing.assert_allclose(got, [mix(places) for places in seen], rtol=1e-6)


def test_means_are_of_valid_keys_and_an_empty_block_is_not_chosen():
    config, inputs = moba.Config(num_heads=1, block=2, top=2), blocks_of_two()
    empty = masks.causal() & masks.padding(np.array([[False, False, True, True, True, True]]))
    got = np.ravel(attend(moba, config, *inputs, empty))
    np.testing.assert_allclose(got[4:], [mix([2, 3, 4]), mix([2, 3, 4, 5])], rtol=1e-6)
    # Half of the first block: its mean is still 1, and half of that would lose to a second of 0.7.
    query, key, value = inputs
    key[0, 2:4] = 0.7
    half = masks.causal() & masks.padding(np.array([[True, False, True, True, True, True]]))
    got = np.ravel(attend(moba, config, query, key, value, half))
    np.testing.assert_allclose(got[4], mix([0, 4]), rtol=1e-6)


def test_the_choice_has_no_gradient():
    query, key, value = blocks_of_two()
    config = moba.Config(num_heads=1, block=2, top=2)

    def last(key):
        return attend(moba, config, query, key, value, masks.causal())[0, 5].sum()

    moved = np.flatnonzero(jax.jit(jax.grad(last))(key))
    np.testing.assert_array_equal(moved, [0, 1, 4, 5])


@pytest.mark.parametrize("causal", [True, False])
def test_the_own_block_alone_is_local_attention(causal):
    inputs, config = heads(), moba.Config(num_heads=N, block=5, top=1)
    mask = masks.causal() if causal else Mask()
    local = mask & masks.segments(np.arange(T)[None] // 5)
    want = reference(*inputs, local)
    np.testing.assert_allclose(attend(moba, config, *inputs, mask), want, atol=1e-6)


@pytest.mark.parametrize("length", [512, 2048, 8192])
def test_moba_work_grows_linearly_besides_the_gate(length):
    pairs = 2 * 8 * length * 4 * 32
    assert core("moba", length, masks.causal(), block=32, top=4) == {
        "gate": 2 * 8 * length * length // 32,
        "scores": pairs,
        "mix": pairs,
    }
