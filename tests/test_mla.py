"""Multi-head latent attention: by hand, from expanded heads, its positions, its cache and its sizes."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinyattn import attention, cost, masks, model
from tinyattn.attention.full import dense, mla
from tinyattn.masks import Mask

B, T, N, H, D = 2, 11, 4, 6, 24
RNG = jax.random.PRNGKey(0)


def config(**fields):
    return mla.Config(**{"num_heads": N, "latent": 5, "rope_dim": 4} | fields)


def arrays(made, T=T, seed=0):
    rng = np.random.default_rng(seed)
    shapes = attention.shapes(mla, made, D=D, B=B, T=T)
    return {name: rng.standard_normal(x).astype(np.float32) for name, x in shapes.items()}


def layer(rotate=None):
    """A layer of drawn parameters as a function of tokens and a mask."""
    module = mla.Attention(config())
    apply = functools.partial(module.apply, drawn(module, tokens()), rotate=rotate)
    return jax.jit(lambda x, mask: apply(x, mask=mask))


def drawn(module, x):
    """Parameters from NumPy: an `init` takes longer to compile than a layer."""
    rng, shapes = np.random.default_rng(3), jax.eval_shape(module.init, RNG, x)
    return jax.tree.map(lambda x: 0.4 * rng.standard_normal(x.shape).astype(x.dtype), shapes)


def tokens(length=T, seed=1):
    return np.random.default_rng(seed).standard_normal((B, length, D)).astype(np.float32)


class Projected(nn.Module):
    config: mla.Config

    @nn.compact
    def __call__(self, x, rotate=None):
        return mla.project(self.config, x, rotate=rotate)


def test_two_tokens_by_hand():
    """Scores of ln 2 and 2 ln 2 weigh values 3 and 6 by 1/3 and 2/3; the shared key then evens them."""
    made = mla.Config(num_heads=1, head_dim=1, latent=1, rope_dim=2)
    value = np.array([1.0, 2.0]).reshape(1, 2, 1, 1)
    key = np.eye(2).reshape(1, 2, 1, 2)
    up_key, up_value = np.ones((1, 1, 1)), np.full((1, 1, 1), 3.0)
    for turned, want in ((0.0, 5.0), (1.0, 4.5)):
        query = np.log(2) * np.sqrt(3) * np.array([1.0, turned, 0.0]).reshape(1, 1, 1, 3)
        given = [x.astype(np.float32) for x in (query, key, value)]
        out = jax.jit(lambda *x: mla.attend(made, *x, Mask(), up_key, up_value))(*given)
        np.testing.assert_allclose(out.reshape(()), want, rtol=1e-5)


@pytest.mark.parametrize("rope_dim", [0, 4])
def test_equals_dense_on_the_expanded_heads(rope_dim):
    made = config(rope_dim=rope_dim)
    given = arrays(made)
    keys = np.zeros((B, T, N, H + rope_dim), np.float32)
    values = np.zeros((B, T, N, H), np.float32)
    for b, s, n in np.ndindex(B, T, N):
        latent = given["value"][b, s, 0]
        keys[b, s, n] = [*(latent @ given["up_key"][:, n]), *given["key"][b, s, 0]]
        values[b, s, n] = latent @ given["up_value"][:, n]
    mask = masks.causal() & masks.padding(np.arange(T)[None] != np.array([[0], [4]]))
    got = jax.jit(lambda x: mla.attend(made, **x, mask=mask))(given)
    want = jax.jit(lambda *x: dense.reference(made, *x, mask))(given["query"], keys, values)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_every_part_of_the_heads_counts():
    made = config()
    given = arrays(made)
    see = jax.jit(lambda x: mla.attend(made, **x, mask=Mask()))
    before = np.asarray(see(given))
    for name in given:
        assert np.abs(see(given | {name: 0.5 * given[name]}) - before).max() > 1e-2, name


@pytest.mark.parametrize("query_latent", [0, 7])
def test_rotation_is_of_the_last_features_alone(query_latent):
    made = Projected(config(query_latent=query_latent))

    params = drawn(made, tokens())

    @jax.jit
    def both(x):
        return made.apply(params, x), made.apply(params, x, rotate=lambda x: x + 100.0)

    plain, (query, key, latent) = jax.tree.map(np.asarray, both(tokens()))
    np.testing.assert_array_equal(query[..., :H], plain[0][..., :H])
    np.testing.assert_allclose(query[..., H:], plain[0][..., H:] + 100.0, rtol=1e-6)
    np.testing.assert_allclose(key, plain[1] + 100.0, rtol=1e-6)
    np.testing.assert_array_equal(latent, plain[2])
    assert key.shape == (B, T, 1, 4)
    # Its norm: a mean square of one before the gain.
    before = latent / params["params"]["latent_norm"]["scale"]
    np.testing.assert_allclose(np.square(before).mean(-1), 1.0, rtol=1e-3)


def test_rotary_positions_are_relative():
    """Three tokens that nobody sees, put first, move all positions and no output."""
    see, x = layer(model.rotate), tokens()
    before = np.asarray(see(x, Mask()))
    moved = np.concatenate([tokens(3, seed=2), x], axis=1)
    after = see(moved, masks.padding(np.arange(T + 3)[None].repeat(B, 0) >= 3))
    np.testing.assert_allclose(np.asarray(after)[:, 3:], before, atol=1e-5)
    turned = np.asarray(see(x[:, ::-1], Mask()))[:, ::-1]
    assert np.abs(turned - before).max() > 1e-2
    # Without them the layer knows no order.
    see = layer()
    turned = np.asarray(see(x[:, ::-1], Mask()))[:, ::-1]
    np.testing.assert_allclose(turned, see(x, Mask()), atol=1e-5)


def test_a_model_hands_over_its_rotary_positions():
    section = attention.spec("mla", num_heads=N, latent=5, rope_dim=4)
    images = np.random.default_rng(0).standard_normal((B, 4, 4, 1)).astype(np.float32)
    sizes = {"width": D, "num_layers": 1, "patch": 1, "attention": section}
    made = {name: model.build(model.spec(positions=name, **sizes)) for name in ("rotary", "none")}
    params = drawn(made["none"], images)
    rotary, none = (np.asarray(jax.jit(made[name].apply)(params, images)) for name in made)
    assert np.abs(rotary - none).max() > 1e-3 * np.abs(none).max()


@pytest.mark.parametrize("capacity", [40, 300])
def test_a_step_reads_latents_and_expands_none(capacity):
    made = config()
    given = jax.tree.map(jnp.asarray, arrays(made, T=1))
    state = jax.eval_shape(lambda: mla.init_state(made, B, capacity, H))
    run = functools.partial(mla.step, made)
    counted = cost.count(lambda state, given: run(state, **given), state, given)
    R, Hr = made.latent, made.rope_dim
    assert counted.products == 2 * B * N * (H * R + capacity * (R + Hr + R) + R * H)


def test_the_cache_is_the_papers():
    """Table 1: 9/2 d_h numbers a token, at the paper's widths; DeepSeek-V2 has 128 heads of 128."""
    made = mla.Config(num_heads=128, head_dim=128, latent=512, rope_dim=64)
    token = mla.state_bytes(made, D=5120, length=2, itemsize=2) - mla.state_bytes(
        made, D=5120, length=1, itemsize=2
    )
    assert token == 2 * 9 * 128 // 2
    plain = dense.Config(num_heads=128, head_dim=128)
    assert dense.state_bytes(plain, D=5120, length=1) > 50 * mla.state_bytes(made, D=5120, length=1)


@pytest.mark.parametrize("Q", [0, 7])
def test_parameters_and_flops_are_the_papers(Q):
    """Kernels of equations 9-13, 14-15 and 37, and beside them biases and gains."""
    made, R, Hr = config(query_latent=Q), 5, 4
    params = jax.eval_shape(mla.Attention(made).init, RNG, jnp.ones((1, T, D)))["params"]
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels, gains = (
        sum(x.size for path, x in leaves if path[-1].key == name) for name in ("kernel", "scale")
    )
    assert gains == R + Q
    query = D * Q + Q * N * (H + Hr) if Q else D * N * (H + Hr)
    want = query + D * (R + Hr) + R * N * (H + H) + N * H * D
    assert kernels == want
    work = mla.flops(made, masks.causal(), D=D, T=T, S=T)
    assert sum(part.executed for part in work.values() if part.projection) == 2 * T * want
    core = [work["scores"], work["mix"]]
    assert sum(part.executed for part in core) == 2 * T * T * N * (H + Hr + H)
    assert sum(part.useful for part in core) == T * (T + 1) * N * (H + Hr + H)


def test_nan_behind_a_mask_stays_out_of_the_gradients_of_expansions():
    made = config()
    given = arrays(made)
    mask = masks.padding(np.arange(T)[None].repeat(B, 0) != 4)

    @jax.jit
    def grads(given):
        return jax.grad(lambda x: jnp.square(mla.attend(made, **x, mask=mask)).sum())(given)

    before = grads(given)
    for name in ("key", "value"):
        dirty = given[name].copy()
        dirty[:, 4] = np.nan
        jax.tree.map(np.testing.assert_array_equal, grads(given | {name: dirty}), before)
        dirty[:, 5] = np.nan
        assert np.isnan(grads(given | {name: dirty})["up_value"]).any(), name


@pytest.mark.cpu
def test_memory_grows_with_the_length_and_not_its_square():
    def peak(length):
        shapes = attention.shapes(mla, config(), D=D, B=1, T=length)
        given = {name: jax.ShapeDtypeStruct(x, jnp.float32) for name, x in shapes.items()}
        # Causal, the core would be four programs; that they hold no table either is its own test.
        loss = jax.grad(lambda x: mla.attend(config(), **x, mask=Mask()).sum())
        return cost.peak_bytes(jax.jit(loss).lower(given).compile())

    assert peak(4096) < 2.2 * peak(2048)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_kv_heads": 2}, "num_kv_heads=2: all heads share one latent.*choose 'latent'"),
        ({"latent": 0}, "latent=0 must be at least 1"),
        ({"query_latent": -1}, "query_latent=-1 positive or 0"),
        ({"rope_dim": 3}, "rope_dim=3 must be even"),
        ({"rope_dim": -2}, "rope_dim=-2 must be even"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        config(**fields)
    assert config(num_kv_heads=N).kv_heads == N


def test_arrays_that_do_not_fit_are_refused():
    made = config()
    given = arrays(made)
    for name, x, message in (
        ("up_key", given["up_key"][:3], "rank is 3 in up_key but 5 in value"),
        ("up_value", given["up_value"][:, :2], "query heads is 2 in up_value but 4 in up_key"),
        ("query", given["query"][..., :-1], "head width is 5 in query but 6 in up_key"),
        ("key", given["key"].repeat(2, 2), "key/value heads is 1 in value but 2 in key"),
    ):
        with pytest.raises(ValueError, match=message):
            mla.attend(made, **given | {name: x}, mask=Mask())
    two = {name: given[name].repeat(2, 2) for name in ("key", "value")}
    with pytest.raises(ValueError, match="all heads share one key and one latent: 2 are given"):
        mla.attend(made, **given | two, mask=Mask())
    token = arrays(made, T=1)
    with pytest.raises(ValueError, match="head width is 5 in query"):
        token["query"] = token["query"][..., :-1]
        mla.step(made, mla.init_state(made, B, 3, H), **token)


def test_rotary_positions_without_a_part_to_turn_are_refused():
    with pytest.raises(ValueError, match="rope_dim=0 leaves nothing for rotary positions"):
        Projected(config(rope_dim=0)).init(RNG, tokens(), model.rotate)
