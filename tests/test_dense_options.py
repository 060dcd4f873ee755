"""Dense attention's sinks, gates, forget gates and tied projection: limits, sums by hand, refusals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_attention as suite

from tinyattn import attention, biases, cost, masks
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

B, T, N = suite.B, suite.T, suite.N
CAUSAL = masks.causal()
# Forget gates need a causal mask, so they are no case of the conformance suite.
FORGET = {"forget": True, "gate": True, "sink": "learned", "num_kv_heads": 2, "cap": 2.0}


PROMISES = (
    suite.test_the_future_is_not_seen,
    suite.test_decodes_token_by_token_as_in_parallel,
    suite.test_a_bias_of_the_scores,
)


@pytest.mark.parametrize("promise", PROMISES)
def test_forget_keeps_what_the_suite_asks_under_a_causal_mask(promise):
    promise(("dense", FORGET))


@pytest.mark.parametrize("length", [T, 150])
def test_forget_equals_reference_in_outputs_and_gradients(length):
    """In one batch under all masks at once, whose segments interleave, and in blocks with padding."""
    _, config = suite.make("dense", FORGET)
    given, rng = suite.arrays(dense, config, T=length), np.random.default_rng(5)
    mask = CAUSAL & masks.padding(rng.random((B, length)) > 0.3)
    if length == T:
        mask = suite.together(dense)
    weight = rng.standard_normal((B, length, 1, 1)).astype(np.float32)
    both = [suite.value_and_grads(dense, name) for name in ("attend", "reference")]
    got, want = (function(config, given, mask, weight) for function in both)
    found = zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True)
    for (path, a), b in found:
        assert np.abs(b).max() > 1e-2, path
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=str(path))


def shares(gates, mask=CAUSAL, **fields):
    """The weights of a head whose queries are 0, [T, S] from values that are one-hot, for these gates."""
    gates = np.asarray(gates, np.float32)
    heads, value = np.zeros((1, len(gates), 1, len(gates)), np.float32), np.eye(len(gates))
    given = {"query": heads, "key": heads, "value": value.astype(np.float32)[None, :, None]}
    given["forget"] = np.log(gates / (1 - gates))[None, :, None]
    config = dense.Config(num_heads=1, forget=True, **fields)
    return suite.attend(dense, config, mask)(given)[0, :, 0]


def test_forget_by_hand():
    """The gate of a token acts on all before it and not on itself: the first gate never matters."""
    for first in (0.1, 0.9):
        got = shares([first, 0.5, 0.25])
        np.testing.assert_allclose(got[1], [1 / 3, 2 / 3, 0], rtol=1e-6)
        np.testing.assert_allclose(got[2], np.array([1 / 8, 1 / 4, 1]) / 1.375, rtol=1e-6)
    # A sink does not fade: it adds 1.
    got = shares([0.1, 0.5, 0.25], sink="one")
    np.testing.assert_allclose(got[2], np.array([1 / 8, 1 / 4, 1]) / 2.375, rtol=1e-6)
    np.testing.assert_allclose(got[0], [0.5, 0, 0], rtol=1e-6)


def test_a_masked_token_decays_nothing():
    """Neither padding nor a token of another segment, wherever it stands; the third is such a key."""
    mine, others = np.array([[7, 7, 7, 7]]), np.array([[7, 7, 2, 7]])
    first, alone = [0.5 / 2.5, 1 / 2.5, 0, 0], [0, 0, 0.5, 0]  # what its query sees
    for mask, third in (
        (masks.padding(others == 7), first),
        (masks.segments(mine, others), first),
        (masks.segments(others), alone),
        (masks.segments(mine) & masks.segments(others), alone),
    ):
        got = shares([0.5, 0.5, 0.1, 0.25], CAUSAL & mask, sink="one")
        np.testing.assert_allclose(got[2], third, rtol=1e-6)
        np.testing.assert_allclose(got[3], np.array([1 / 8, 1 / 4, 0, 1]) / 2.375, rtol=1e-6)


def test_segments_do_not_touch_each_other_to_the_last_bit():
    _, config = suite.make("dense", FORGET)
    mask = CAUSAL & masks.segments(np.broadcast_to(np.arange(T) // 5, (B, T)))
    given, see = suite.arrays(dense, config), suite.attend(dense, config, mask)
    before = see(given)
    for other in (4.0, np.nan):
        after = see(suite.put(given, np.s_[:, 5:10], other))
        np.testing.assert_array_equal(after[:, :5], before[:, :5])
        np.testing.assert_array_equal(after[:, 10:], before[:, 10:])


def test_a_gate_that_is_nan_stays_behind_the_mask():
    """Padding hides it, from gradients as well; a window shows it to three queries."""
    _, config = suite.make("dense", FORGET)
    given, weight = suite.arrays(dense, config), suite.weight()
    dirty = suite.put(given, np.s_[0, 4], np.nan, ("forget",))
    run = functools.partial(suite.value_and_grads(dense, "attend"), config)
    hidden = CAUSAL & masks.padding(np.arange(T)[None] != np.array([[4], [T]]))
    clean = run(given, hidden, weight)
    jax.tree.map(np.testing.assert_array_equal, run(dirty, hidden, weight), clean)
    out = suite.attend(dense, config, CAUSAL & masks.window(3))(dirty)
    bad = np.isnan(out).any((2, 3))
    assert bad[0].tolist() == [t in (4, 5, 6) for t in range(T)] and not bad[1].any()


def test_a_gate_that_closes_leaves_the_sums_after_it():
    """Two that shut out all before them: a sum that had taken up -1e30 would lose the others."""
    _, config = suite.make("dense", {"forget": True})
    given = suite.put(suite.arrays(dense, config), np.s_[:, (3, 7)], -1e30, ("forget",))
    (want,) = suite.same_outputs(dense, config, given, {"causal": CAUSAL})
    np.testing.assert_allclose(want[:, 7], given["value"][:, 7], rtol=1e-6)
    assert np.abs(want[:, 8] - given["value"][:, 8]).max() > 0.1


def test_limits_in_which_an_option_is_none_and_that_it_is_not_elsewhere():
    heads = suite.arrays(dense, dense.Config())

    def run(fields, **extras):
        return suite.attend(dense, dense.Config(**fields), CAUSAL)(heads | extras)

    none, half = run({}), {}
    for fields, shape, limit in (
        ({"sink": "learned"}, (N,), -1e4),
        ({"gate": True}, (B, T, N, 6), 1e4),
        ({"forget": True}, (B, T, N), 1e4),
    ):
        (name,) = fields
        near = run(fields, **{name: np.full(shape, limit, np.float32)})
        np.testing.assert_allclose(near, none, atol=1e-6, err_msg=name)
        half[name] = run(fields, **{name: np.zeros(shape, np.float32)})
        assert np.abs(half[name] - none).max() > 0.1, name
    np.testing.assert_array_equal(half["sink"], run({"sink": "one"}))
    np.testing.assert_allclose(half["gate"], none / 2, rtol=1e-6)


def turn(x):
    """Stands for rotary positions: features differ by the parity of their position."""
    return x * np.where(np.arange(x.shape[1])[:, None, None] % 2, -1.0, 0.5).astype(np.float32)


def test_tied_is_dense_with_one_kernel_for_both():
    """Turned by the position as well, and with keys of another sequence."""
    x, memory = suite.inputs_of_width(20, 0), suite.inputs_of_width(20, 1)[:, :9]
    tied, plain = (dense.Attention(dense.Config(tie=tie)) for tie in (True, False))
    params = jax.jit(tied.init)(jax.random.PRNGKey(1), x)["params"]
    assert set(params) == {"query", "value", "out"}

    @jax.jit
    def both(params):
        twice = params | {"key": params["query"]}
        calls = {"mask": CAUSAL, "rotate": turn}, {"memory": memory, "rotate": turn}, {}
        return [
            (tied.apply({"params": params}, x, **call), plain.apply({"params": twice}, x, **call))
            for call in calls
        ]

    for got, want in both(params):
        np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_module_hands_over_its_options_and_all_of_them_learn():
    """Every array from its own kernel by hand, beside a bias; each parameter moves the output."""
    config, x = dense.Config(**FORGET, head_dim=6), suite.inputs_of_width(20, 0)
    layer, call = dense.Attention(config), {"mask": CAUSAL, "bias": biases.Linear(np.ones(N) / 3)}
    own = jax.jit(functools.partial(layer.init, **call))(jax.random.PRNGKey(1), x)["params"]
    assert not np.asarray(own["sink"]["logit"]).any()
    own["sink"]["logit"] = np.linspace(-1, 1, N, dtype=np.float32)

    def by_hand(own):
        def heads(name, *shape):
            return (x @ own[name]["kernel"] + own[name]["bias"]).reshape(B, T, *shape)

        given = {"query": heads("query", N, 6), "forget": heads("forget", N)}
        given |= {"key": heads("key", 2, 6), "value": heads("value", 2, 6)}
        given |= {"gate": heads("gate", N, 6), "sink": own["sink"]["logit"]}
        mixed = dense.reference(config, **given, **call).reshape(B, T, -1)
        return mixed @ own["out"]["kernel"] + own["out"]["bias"]

    @jax.jit
    def run(own):
        out, pull = jax.vjp(lambda own: layer.apply({"params": own}, x, **call), own)
        return out, by_hand(own), pull(out)[0]

    out, want, grads = run(own)
    np.testing.assert_allclose(out, want, atol=1e-5, rtol=1e-5)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.abs(grad).max() > 1e-3, path


@pytest.mark.parametrize(("fields", "S"), [(FORGET, None), ({"tie": True, "gate": True}, 9)])
def test_declared_equals_counted_flops(fields, S):
    D, config, mask = 20, dense.Config(**fields), Mask() if S else CAUSAL
    inputs = [jax.ShapeDtypeStruct((1, n, D), jnp.float32) for n in (T, S) if n]
    layer, call = dense.Attention(config), {"mask": mask}
    params = jax.eval_shape(functools.partial(layer.init, **call), jax.random.PRNGKey(0), *inputs)
    declared = dense.flops(config, mask, D=D, T=T, S=S or T)
    counted = cost.count(functools.partial(layer.apply, **call), params, *inputs).products
    assert sum(part.executed for part in declared.values()) == counted
    assert declared["gate"] == attention.products(T * D * D)


@pytest.mark.cpu  # which alone streams
def test_forget_holds_no_table_of_pairs():
    config, length = dense.Config(num_heads=2, forget=True), 2048
    shapes = attention.shapes(dense, config, D=8, B=1, T=length)
    given = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    mask = CAUSAL & masks.segments(np.zeros((1, length), int))
    run = suite.value_and_grads(dense, "attend")
    compiled = run.lower(config, given, mask, given["value"][..., :1, :1]).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * length * length / 2


def test_a_cache_in_bfloat16_keeps_its_logarithms_in_float32():
    config = dense.Config(num_kv_heads=2, forget=True)
    state = dense.init_state(config, 1, 7, 5, jnp.bfloat16)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held == dense.state_bytes(config, D=20, length=7, itemsize=2) == 7 * (40 + 16) + 4


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match=r"sink='two' must be one of \['none', 'one', 'learned'\]"):
        dense.Config(sink="two")
    with pytest.raises(ValueError, match="num_kv_heads=2 must be num_heads=4"):
        dense.Config(tie=True, num_kv_heads=2)
    config, plain = dense.Config(forget=True), dense.Config()
    given = suite.arrays(dense, config)
    heads, other = suite.heads_of(given), {name: given[name][:, :5] for name in suite.KEYS}
    three = {"forget": given["forget"][..., :3]}
    for own, arrays, mask, message in (
        (config, given, Mask(), "lookahead=None must be 0, so give a causal mask"),
        (config, given, masks.window(3), "lookahead=2 must be 0, so give a causal mask"),
        (config, given | other, CAUSAL, "queries' own sequence: T=13, S=5"),
        (config, heads, CAUSAL, r"take the arrays \['forget'\], not \[\]"),
        (plain, given, CAUSAL, r"take the arrays \[\], not \['forget'\]"),
        (config, heads | three, CAUSAL, "query heads is 3 in forget but 4 in query"),
    ):
        with pytest.raises(ValueError, match=message):
            dense.attend(own, **arrays, mask=mask)
    x = suite.inputs_of_width(20, 0)
    with pytest.raises(ValueError, match="give no memory"):
        dense.Attention(config).init(jax.random.PRNGKey(0), x, x)
    token = {name: x[:, :1] for name, x in heads.items()}
    with pytest.raises(ValueError, match=r"take the arrays \['forget'\], not \[\]"):
        dense.step(config, dense.init_state(config, B, 3, 6), **token)
