"""The conformance suite: what every attention variant promises, here or in a fork.

pytest tests/test_attention.py --attention=myfork.cosine
"""

import dataclasses
import functools
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tinyattn import attention, biases, cost, masks
from tinyattn.attention.full import dense
from tinyattn.masks import Mask

# All different, so that no transposition can hide.
B, T, N, H, D = 2, 13, 4, 6, 10
RNG = jax.random.PRNGKey(1)
TYPICAL = ("dense", "lsh", "nystrom", "gla")


def pytest_generate_tests(metafunc):
    chosen = metafunc.config.getoption("--attention")
    names = [chosen] if chosen else attention.names()
    # Compiling is what this suite spends its time on: `case` is every setting, `first` one a variant.
    if "case" in metafunc.fixturenames:
        settings = {name: attention.load(name).CASES for name in names}
        cases = [(name, fields[0]) for name, fields in settings.items()]
        # The first ones first: all tests of a case then run together, and share programs.
        if "first" not in metafunc.fixturenames:
            cases += [(name, other) for name, fields in settings.items() for other in fields[1:]]
        labels = [f"{name}-{fields}" for name, fields in cases]
        metafunc.parametrize("case", cases, ids=labels, scope="module")
    elif "typical" in metafunc.fixturenames:
        # One of each family, and no longer than needed: eagerly, every operation is a program to compile.
        metafunc.parametrize("typical", [chosen] if chosen else TYPICAL)
    elif "name" in metafunc.fixturenames:
        metafunc.parametrize("name", names)


@pytest.fixture(scope="module")
def first(case):
    return case


def make(name, fields):
    return attention.build(attention.spec(name, **{"num_heads": N, **fields}))


def is_first(module, config):
    return config == module.Config(**{"num_heads": N, **module.CASES[0]})


def arrays(module, config, T=T, S=None, dtype=jnp.float32, seed=0):
    """Everything that `attend` takes, by name."""
    rng = np.random.default_rng(seed)
    found = attention.shapes(module, config, D=N * 6, B=B, T=T, S=S)
    # NumPy's, as is whatever is done to them: JAX would compile a program for every slice.
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in found.items()}


def put(arrays, index, value, names=None):
    """The arrays with another value at an index of their tokens [B, T, ...]."""

    def changed(name, x):
        if x.shape[:2] != (B, T) or (names and name not in names):
            return x
        x = np.array(x)
        x[index] = value
        return x

    return {name: changed(name, x) for name, x in arrays.items()}


KEYS = ("key", "value")


DRAW = np.random.default_rng(1)
VALID, IDS = DRAW.random((B, T)) > 0.4, DRAW.integers(0, 3, (B, T))
PARTS = {
    "causal": masks.causal(),
    "window": masks.window(3),
    "padding": masks.padding(VALID),
    "segments": masks.segments(IDS),
}


def together(module, kinds=tuple(PARTS)):
    """Those of the kinds that are honoured, in one mask."""
    honoured = (PARTS[kind] for kind in kinds if kind in module.SUPPORTS)
    return functools.reduce(Mask.__and__, honoured, Mask())


def opened(module, valid=None, ids=None):
    """Padding and segments as far as they are honoured: one program, whatever is hidden."""
    valid = np.ones((B, T), bool) if valid is None else np.broadcast_to(valid, (B, T))
    ids = np.zeros_like(IDS) if ids is None else np.broadcast_to(ids, (B, T))
    kinds = {"padding": masks.padding(valid), "segments": masks.segments(ids)}
    honoured = (mask for kind, mask in kinds.items() if kind in module.SUPPORTS)
    return functools.reduce(Mask.__and__, honoured, Mask())


def some(module):
    """The causal mask, or none for a variant that has no causal form."""
    return masks.causal() if "causal" in module.SUPPORTS else Mask()


@functools.cache
def value_and_grads(module, function):
    def both(config, given, mask, weight):
        def loss(given):
            out = getattr(module, function)(config, **given, mask=mask)
            return (out.astype(jnp.float32) * weight).sum(), out

        (_, out), grads = jax.value_and_grad(loss, has_aux=True)(given)
        return out, grads

    return jax.jit(both, static_argnums=0)


# Grows with each program that is traced.
TRACED = []


@functools.cache
def outputs(module, functions=("attend",)):
    """Of functions under several masks, by one program."""

    def several(config, given, several):
        TRACED.append(functions)
        calls = [functools.partial(getattr(module, f), config, **given) for f in functions]
        return [[call(mask=mask) for mask in several] for call in calls]

    compiled = jax.jit(several, static_argnums=0)
    return lambda *args: jax.tree.map(np.asarray, compiled(*args))


def attend(module, config, mask):
    return lambda given: outputs(module)(config, given, (mask,))[0][0]


def graded(module, config, given, mask):
    """Outputs, by the program that gives the gradients."""
    return np.asarray(value_and_grads(module, "attend")(config, given, mask, weight())[0])


class Table(NamedTuple):
    """A mask as arrays: all that most references ask for, which so are one program under any mask."""

    pairs: jax.Array
    key_valid: jax.Array

    def dense(self, T, S):
        return self.pairs[:, :T, :S]


def exact(module, config, given, mask=Mask()):
    """Outputs and gradients of the reference."""
    both = functools.partial(value_and_grads(module, "reference"), config, given, weight=weight())
    pairs = np.broadcast_to(mask.dense(T, T), (B, T, T))
    try:
        return both(
            Table(pairs, np.ones((B, T), bool) if mask.key_valid is None else mask.key_valid)
        )
    except (AttributeError, TypeError):
        # This one asks how far the mask reaches, or joins it with another.
        return both(mask & opened(module))


def same_outputs(module, config, given, several):
    got, want = outputs(module, ("attend", "reference"))(config, given, tuple(several.values()))
    for kind, a, b in zip(several, got, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=kind)
    return want


def weight():
    return np.random.default_rng(9).standard_normal((B, T, 1, 1)).astype(np.float32)


def test_contract(name):
    module = attention.load(name)
    assert dataclasses.is_dataclass(module.Config)
    assert module.Config.__dataclass_params__.frozen
    with pytest.raises(TypeError):
        module.Config(4)
    for word in ("Source:", "Differs:"):
        assert word in module.__doc__, f"{name} does not say its {word}"
    assert module.SUPPORTS <= {"causal", "window", "padding", "segments", "cross", "bias"}
    assert isinstance(module.SIMULATED, bool)
    assert module.CASES
    for function in ("attend", "reference", "flops"):
        assert getattr(module, function).__doc__
    # What the task does not train, another loss does.
    assert not getattr(module, "DETACHED", ()) or module.auxiliary.__doc__


@pytest.mark.parametrize("band", ["causal", "window"])
def test_equals_reference_under_a_band(first, band):
    """All else that a mask has is below, with gradients."""
    module, config = make(*first)
    if band not in module.SUPPORTS:
        pytest.skip(f"no {band} mask; that it raises is tested below")
    given = arrays(module, config)
    want = exact(module, config, given, PARTS[band])[0]
    got = attend(module, config, PARTS[band])(given)
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def none_and_all(module):
    return {"full": Mask(), "all": together(module)}


@pytest.fixture(scope="module")
def wanted(first):
    """The references, made before a test that is `optimised`, as they need not be."""
    module, config = make(*first)
    several = tuple(none_and_all(module).values())
    return outputs(module, ("reference",))(config, arrays(module, config), several)[0]


@pytest.mark.optimised
def test_equals_reference_as_users_compile_it(first, wanted):
    module, config = make(*first)
    several = none_and_all(module)
    (got,) = outputs(module)(config, arrays(module, config), tuple(several.values()))
    for kind, a, b in zip(several, got, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5, err_msg=kind)


def test_equals_reference_in_outputs_and_gradients(case):
    """Of the rest, no mask at the first setting and all kinds at once at others, in its module, below."""
    module, config = make(*case)
    given, several = arrays(module, config), {}
    if "padding" in module.SUPPORTS:
        several["padding"] = opened(module, valid=VALID)
    if "segments" in module.SUPPORTS:
        several["segments"] = opened(module, ids=IDS)
    if is_first(module, config):
        several["all"] = together(module)
    for kind, mask in several.items():
        got = value_and_grads(module, "attend")(config, given, mask, weight())
        close(got, exact(module, config, given, mask), kind)


def close(got, want, what):
    """Outputs and gradients."""
    np.testing.assert_allclose(got[0], want[0], atol=1e-5, rtol=1e-5, err_msg=what)
    paths, grads = zip(*jax.tree_util.tree_leaves_with_path(want[1]), strict=True)
    for path, a, b in zip(paths, jax.tree.leaves(got[1]), grads, strict=True):
        where = f"{jax.tree_util.keystr(path)}, {what}"
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=2e-5, err_msg=where)


def test_a_single_token(first):
    module, config = make(*first)
    same_outputs(module, config, arrays(module, config, T=1), {"some": some(module)})


def test_problems_side_by_side_equal_the_reference_one_by_one(first):
    """And at another length."""
    module, config = make(*first)
    several = [arrays(module, config, T=8, seed=seed) for seed in (0, 3)]

    def by(function):
        return lambda given: function(config, **given, mask=some(module))

    @jax.jit
    def both(pair):
        return jax.vmap(by(module.attend))(pair), jax.lax.map(by(module.reference), pair)

    got, want = both(jax.tree.map(lambda *x: np.stack(x), *several))
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_cross_attention_to_another_length(case):
    module, config = make(*case)
    if "cross" not in module.SUPPORTS:
        pytest.skip("no cross attention; that it raises is tested below")
    valid = masks.padding(np.arange(9)[None] < np.array([[4], [9]]))
    given = arrays(module, config, T=5, S=9)
    same_outputs(module, config, given, {"full": Mask(), "padding": valid})


def test_a_bias_of_the_scores(case):
    module, config = make(*case)
    if "bias" not in module.SUPPORTS:
        pytest.skip("no bias; that it raises is tested below")
    given = arrays(module, config)
    bias = {"bias": biases.Linear(np.linspace(0.1, 1.0, N, dtype=np.float32))}
    (want,) = same_outputs(module, config, given | bias, {"causal": masks.causal()})
    without = attend(module, config, masks.causal())(given)
    assert np.abs(want - without).max() > 1e-2


def test_the_future_is_not_seen(case):
    module, config = make(*case)
    if "causal" not in module.SUPPORTS:
        pytest.skip("not causal; that it raises is tested below")
    given, see = arrays(module, config), attend(module, config, masks.causal())
    before = see(given)
    for t in range(1, T):
        # NaN later on, which no factor of zero hides.
        after = see(put(put(given, np.s_[:, t:], 7.0), np.s_[:, t + 1 :], np.nan))
        np.testing.assert_array_equal(after[:, :t], before[:, :t])
        # What could not change cannot fail.
        assert not np.array_equal(after[:, t], before[:, t])
        assert np.isfinite(after[:, t]).all()


def test_masked_keys_and_other_examples_are_not_seen(case):
    module, config = make(*case)
    given = arrays(module, config)
    if "padding" in module.SUPPORTS:
        mask = opened(module, valid=np.arange(T)[None] < np.array([[7], [T]]))
        see = functools.partial(graded, module, config, mask=mask)
        before = see(given)
        dirty = put(put(given, np.s_[0, 7:], 50.0, KEYS), np.s_[0, 8:10], np.nan, KEYS)
        np.testing.assert_array_equal(see(dirty), before)
        assert not np.array_equal(see(put(given, np.s_[0, 6], 50.0, KEYS)), before)
        poisoned = see(put(given, np.s_[0, 3], np.nan, KEYS))
        assert np.isnan(poisoned[0]).any() and np.isfinite(poisoned[1]).all()
    see = functools.partial(graded, module, config, mask=opened(module))
    np.testing.assert_array_equal(see(put(given, 1, np.nan))[0], see(given)[0])


def test_segments_are_not_mixed(case):
    module, config = make(*case)
    if "segments" not in module.SUPPORTS:
        pytest.skip("no segments; that it raises is tested below")
    given, mask = arrays(module, config), opened(module, ids=np.arange(T) // 5)
    see = functools.partial(graded, module, config, mask=mask)
    before, after = see(given), see(put(given, np.s_[:, 5:10], 4.0))
    assert not np.array_equal(after[:, 5:10], before[:, 5:10])
    np.testing.assert_array_equal(after[:, :5], before[:, :5])
    np.testing.assert_array_equal(after[:, 10:], before[:, 10:])


def test_rows_that_see_nothing_are_zero_with_finite_gradients(case):
    module, config = make(*case)
    if "padding" not in module.SUPPORTS:
        pytest.skip("no padding; that it raises is tested below")
    mask = opened(module, valid=np.arange(B)[:, None] == 1)
    out, grads = value_and_grads(module, "attend")(config, arrays(module, config), mask, weight())
    assert (np.asarray(out[0]) == 0).all()
    assert (np.asarray(out[1]) != 0).any()
    for name, grad in grads.items():
        assert np.isfinite(grad).all(), name
        if grad.shape[:2] == (B, T):
            assert (np.asarray(grad[0]) == 0).all(), name


def test_decodes_token_by_token_as_in_parallel(case):
    """Examples of unequal length in one batch; an example that has ended keeps its state to the bit."""
    module, config = make(*case)
    if not hasattr(module, "step"):
        pytest.skip("does not decode")
    given, lengths = arrays(module, config), np.array([T - 5, T])
    want = attend(module, config, masks.causal())(given)
    # What a step takes of its own: all that has another shape for a single token.
    single = attention.shapes(module, config, D=N * 6, B=B, T=1)
    own = {name for name, x in given.items() if x.shape != single[name]}
    H = given["value"].shape[-1]

    @jax.jit
    def run(given):
        def one(state, x):
            t, token = x
            token = {name: x[:, None] for name, x in token.items()}
            rest = {name: x for name, x in given.items() if name not in own}
            out, state = module.step(config, state, **token, **rest, active=t < lengths)
            return state, (out[:, 0], state)

        first = module.init_state(config, B, T, H)
        # Some arrays are of the first tokens only; zeros stand for what the others have not.
        tokens = {
            name: jnp.pad(x.swapaxes(0, 1), [(0, T - x.shape[1])] + [(0, 0)] * (x.ndim - 1))
            for name, x in given.items()
            if name in own
        }
        return jax.lax.scan(one, first, (jnp.arange(T), tokens))

    state, (outs, states) = jax.tree.map(np.asarray, run(given))
    for b, length in enumerate(lengths):
        np.testing.assert_allclose(outs[:length, b], want[b, :length], atol=1e-5, rtol=1e-5)
    for leaf in jax.tree.leaves(states):
        np.testing.assert_array_equal(leaf[-1, 0], leaf[T - 6, 0])
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert held == B * module.state_bytes(config, D=N * 6, length=T)


def test_a_cache_that_is_full_says_so():
    module, config = make("dense", {})
    given = arrays(module, config, T=1)
    step = jax.jit(functools.partial(module.step, config))
    out, state = step(module.init_state(config, B, 1, given["key"].shape[-1]), **given)
    assert np.isfinite(out).all()
    out = np.asarray(step(state, **given, active=np.array([True, False]))[0])
    assert np.isnan(out[0]).all() and np.isfinite(out[1]).all()
    with pytest.raises(ValueError, match="capacity=0"):
        module.init_state(config, B, 0, 6)


def test_large_scores_stay_finite(first):
    module, config = make(*first)
    given = arrays(module, config)
    large = {name: x * 300 if name in ("query", "key") else x for name, x in given.items()}
    for mask in (opened(module), together(module)):
        out, grads = value_and_grads(module, "attend")(config, large, mask, weight())
        assert np.isfinite(out).all()
        for name, grad in grads.items():
            assert np.isfinite(grad).all(), name


def test_equals_dense_where_it_must(name):
    module = attention.load(name)
    if module.DENSE_WHEN is None:
        pytest.skip("never equal to dense attention, says the variant")
    _, config = make(name, module.DENSE_WHEN)
    given, several = arrays(module, config), none_and_all(module)
    if "causal" in module.SUPPORTS:
        several["all but causal"] = together(module, ("window", "padding", "segments"))
    (outs,) = outputs(module)(config, given, tuple(several.values()))
    for (kind, mask), got in zip(several.items(), outs, strict=True):
        want = plain(config, given, mask)
        np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5, err_msg=kind)


def heads_of(given):
    return {name: given[name] for name in ("query", "key", "value")}


def plain(config, given, mask):
    """Dense attention to the same heads, by a config of its own: one program for many variants."""
    _, own = make("dense", {"num_kv_heads": config.kv_heads})
    return exact(dense, own, heads_of(given), mask)[0]


def test_is_not_dense_where_it_need_not(first):
    """A mechanism that is on changes the output."""
    module, config = make(*first)
    given = arrays(module, config)
    if module is dense or given["query"].shape[-1] != given["key"].shape[-1]:
        pytest.skip("dense is dense, and takes keys as wide as queries")
    other = plain(config, given, Mask())
    assert np.abs(graded(module, config, given, opened(module)) - other).max() > 1e-2


def test_declared_equals_counted_flops(case):
    """At lengths that no block divides, and at one."""
    module, config = make(*case)
    layer, params = module.Attention(config), learned(module, config).params
    met = [(1, some(module)), (97, Mask())]
    for length, mask in met + [(97, some(module))] * ("causal" in module.SUPPORTS):
        inputs = jax.ShapeDtypeStruct((1, length, N * H), jnp.float32)
        declared = module.flops(config, mask, D=N * H, T=length, S=length)
        counted = cost.count(
            lambda p, x, m=mask: layer.apply({"params": p}, x, mask=m), params, inputs
        )
        assert sum(part.executed for part in declared.values()) == counted.products
        assert all(0 <= part.useful <= part.executed for part in declared.values())


def test_products_grow_as_said(name):
    """What is executed beyond projections, from 2,048 to 8,192 tokens, within a tenth of `COST`."""
    module, config = make(name, {})
    mask, D = some(module), N * 16
    values, executed = [], []
    for length in (2048, 8192):
        # A field of 0 stands for its default; any number does, as long as it stays the same.
        fields = {name: x or 16 for name, x in dataclasses.asdict(config).items()}
        values.append(eval(module.COST, {}, {**fields, "T": length, "H": 16}))
        work = module.flops(config, mask, D=D, T=length, S=length).values()
        executed.append(sum(part.executed for part in work if not part.projection))
    assert executed[1] / executed[0] == pytest.approx(values[1] / values[0], rel=0.1)


def test_useful_flops_follow_the_allowed_pairs(case):
    module, config = make(*case)
    if module.DENSE_WHEN is None or "causal" not in module.SUPPORTS:
        pytest.skip("no pairs: useful is the variant's own formula")
    allowed = np.asarray(effective(module, config, masks.causal())).sum()
    work = module.flops(config, masks.causal(), D=N * 5, T=T, S=T)
    pairs = sum(work[part].useful for part in ("scores", "mix"))
    assert pairs == 4 * config.width(N * 5) * N * allowed


def effective(module, config, mask):
    """Which key moves which query, bool [B or 1, T, T]: a sparse variant with a pattern says its own."""
    own = getattr(module, "effective", lambda config, mask, T: mask.dense(T, T))
    return own(config, mask, T)


def test_jit_equals_eager(typical):
    module, config = make(typical, attention.load(typical).CASES[0])
    given = arrays(module, config, T=8)
    eager = module.attend(config, **jax.tree.map(jnp.asarray, given), mask=some(module))
    jitted = attend(module, config, some(module))(given)
    np.testing.assert_allclose(jitted, eager, atol=2e-6, rtol=1e-5)


def test_compiles_once(first):
    module, config = make(*first)
    see = attend(module, config, some(module))
    see(arrays(module, config))
    before = len(TRACED)
    see(arrays(module, config, seed=3))
    assert before == len(TRACED) > 0


def test_bfloat16_works(first):
    module, config = make(*first)
    given = arrays(module, config, dtype=jnp.bfloat16)
    both = functools.partial(value_and_grads(module, "attend"), config, mask=Mask())
    grads = jax.eval_shape(both, given, weight=weight())[1]
    assert all(grad.dtype == jnp.bfloat16 for grad in grads.values())
    out = attend(module, config, Mask())(given)
    assert out.dtype == jnp.bfloat16
    want = exact(module, config, jax.tree.map(lambda x: x.astype(np.float32), given))[0]
    # bfloat16 keeps 8 bits.
    assert np.abs(np.asarray(out, np.float32) - want).max() < 0.03


def inputs_of_width(D, seed):
    return np.random.default_rng(seed).standard_normal((B, T, D)).astype(np.float32)


def by_reference(module):
    """Within it, modules call the reference for `attend`: it is traced in less time."""
    return mock.patch.object(module, "attend", module.reference)


class Learned(NamedTuple):
    """Of a module: params, outputs and gradients from them of both functions, and what 30 steps gave."""

    params: Any
    got: Any
    want: Any
    losses: np.ndarray
    grads: Any


def trained_under(module, config):
    """No mask at the first setting, and all kinds at once at others."""
    if is_first(module, config):
        return Mask()
    # A token that others look up to sees two keys at least, or its query had no gradient.
    hidden = opened(module, valid=np.arange(T) != 5, ids=np.arange(T) // 8)
    return together(module, ("causal", "window")) & hidden


@functools.cache
def learned(module, config):
    """By one program.

    At the first setting params are those the module starts with, but for kernels; at others all are
    NumPy's, for drawing them is half of the program.
    """
    first, mask = is_first(module, config), trained_under(module, config)
    x, y = inputs_of_width(N * H, 0), inputs_of_width(N * H, 1)
    draw = np.random.default_rng(1)

    def drawn(_, shape, dtype=np.float32):
        return (draw.standard_normal(shape) / (shape or (1,))[0] ** 0.5).astype(dtype)

    layer = module.Attention(config, kernel_init=drawn, out_init=drawn)
    optimizer = optax.flatten(optax.adam(1e-2))
    given = None
    if not first:
        with by_reference(module):
            shapes = jax.eval_shape(layer.init, RNG, x)["params"]
        given = jax.tree.map(lambda x: drawn(RNG, x.shape), shapes)

    @functools.partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    def graded(params, x):
        out = layer.apply({"params": params}, x, mask=mask)
        return jnp.square(out - y).sum(-1).mean(), out

    def step(carry, _):
        params, opt = carry
        (loss, out), grads = graded(params, x)
        updates, opt = optimizer.update(grads[0], opt)
        return (optax.apply_updates(params, updates), opt), (loss, out, grads)

    @jax.jit
    def learn(params):
        with by_reference(module):
            params = layer.init(RNG, x)["params"] if params is None else params
            (_, out), grads = graded(params, x)
        losses, outs, found = jax.lax.scan(step, (params, optimizer.init(params)), length=30)[1]
        got = outs[0], jax.tree.map(lambda x: x[0], found)
        return Learned(params, got, (out, grads), losses, found[0])

    return jax.tree.map(np.asarray, learn(given))


def test_module_equals_itself_with_the_reference(case):
    """In outputs and in the gradients of params and inputs."""
    found = learned(*make(*case))
    close(found.got, found.want, "in its module")


def test_module_projects_attends_and_projects_back(case):
    """Of a variant that makes heads its own way, only that the parts fit together is tested here."""
    module, config = make(*case)
    x, found = inputs_of_width(N * H, 0), learned(module, config)
    params, got = found.params, found.got[0]
    if set(params) != {"query", "key", "value", "out"}:
        assert got.shape == x.shape and np.isfinite(got).all()
        return
    assert {p["kernel"].ndim for p in params.values()} == {2}
    K, width = config.kv_heads, config.width(N * H)

    def project(name, count):
        return (x @ params[name]["kernel"] + params[name]["bias"]).reshape(B, T, count, width)

    given = {"query": project("query", N), "key": project("key", K), "value": project("value", K)}
    mixed = exact(module, config, given, trained_under(module, config))[0]
    mixed = np.asarray(mixed).reshape(B, T, N * width)
    want = mixed @ params["out"]["kernel"] + params["out"]["bias"]
    np.testing.assert_allclose(got, want, atol=1e-5, rtol=1e-5)


def test_learns_and_every_leaf_gets_gradient(case):
    module, config = make(*case)
    *_, losses, grads = learned(module, config)
    assert losses[-1] < 0.9 * losses[0]
    detached = tuple(getattr(module, "DETACHED", ()))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all()
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if name.startswith(detached):
            assert (grad == 0).all(), name
            continue
        # A softmax does not see a key's bias, which moves all scores of a query alike.
        assert np.abs(grad[-1]).max() > 3e-5 or name in ("key/bias", "global_key/bias"), name


def test_what_is_not_supported_raises(name):
    module, config = make(name, attention.load(name).CASES[0])
    layer = module.Attention(config)
    x = jnp.ones((B, T, N * 5))
    for kind, mask in PARTS.items():
        if kind in module.SUPPORTS:
            continue
        with pytest.raises(ValueError, match=f"cannot honour {kind}"):
            module.attend(config, **arrays(module, config), mask=mask)
        with pytest.raises(ValueError, match=f"cannot honour {kind}"):
            layer.init(jax.random.PRNGKey(0), x, mask=mask)
    if "cross" not in module.SUPPORTS:
        with pytest.raises(ValueError, match="cannot honour cross"):
            layer.init(jax.random.PRNGKey(0), x, jnp.ones((B, 5, N * 5)))
    if "bias" not in module.SUPPORTS:
        with pytest.raises(ValueError, match="cannot honour bias"):
            layer.init(jax.random.PRNGKey(0), x, bias=biases.Linear(jnp.ones(N)))
    with pytest.raises(ValueError, match="two sequences"):
        layer.init(jax.random.PRNGKey(0), x, jnp.ones((B, 5, N * 5)), mask=masks.causal())


def test_illegal_sizes_are_named(name):
    with pytest.raises(ValueError, match=r"num_kv_heads=3 must divide num_heads=4"):
        make(name, {"num_kv_heads": 3})
    with pytest.raises(ValueError, match="no field 'num_haeds'; did you mean 'num_heads'"):
        make(name, {"num_haeds": 3})
    module, config = make(name, {})
    with pytest.raises(ValueError, match="must divide the model width 10"):
        module.Attention(config).init(jax.random.PRNGKey(0), jnp.ones((B, T, D)))
    given = arrays(module, config)
    given["value"] = given["value"][:, :5]
    with pytest.raises(ValueError, match="key length is 5 in value but 13 in key"):
        module.attend(config, **given, mask=Mask())


def test_unknown_variant_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="no 'windw'; did you mean 'window'"):
        attention.spec("windw")
    with pytest.raises(ValueError, match=r"no module called 'nowhere.ring'"):
        attention.spec("nowhere.ring")
