"""Our functions of the golden files' inputs: how ours and theirs are brought to the same terms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from oracles.kept import EXACT, ROUNDED

from tinyattn import biases, masks, model
from tinyattn.attention.full import dense, differential, mla
from tinyattn.attention.lowrank import nystrom
from tinyattn.attention.recurrent import deltanet, gla, linear, retention
from tinyattn.attention.sparse import blocks, dsa, longformer, lsh, nsa
from tinyattn.masks import Mask

OURS = {}


def ours(name, precision=EXACT):
    """Registers what makes our function of a file's inputs: (settings, arrays) -> (**inputs) -> out."""

    def register(make):
        OURS[name] = make, precision
        return make

    return register


def seen(arrays):
    return masks.padding(jnp.asarray(arrays["valid"]))


def own(make_config):
    """Fields of a variant's `Config` among the settings."""

    def chosen(settings, **fields):
        names = make_config.__dataclass_fields__
        return make_config(**{k: v for k, v in settings.items() if k in names}, **fields)

    return chosen


@ours("sinks")
def _(settings, arrays):
    config = own(dense.Config)(settings, sink="learned")
    mask = masks.causal() & masks.window(settings["window"])
    return functools.partial(dense.attend, config, mask=mask)


@ours("gate")
def _(settings, arrays):
    config = own(dense.Config)(settings, gate=True, qk_norm=True)
    return functools.partial(dense.attend, config, mask=masks.causal())


@ours("forget")
def _(settings, arrays):
    config = own(dense.Config)(settings, forget=True)
    return functools.partial(dense.attend, config, mask=masks.causal())


@ours("t5_bias")
def _(settings, arrays):
    config = dense.Config(num_heads=settings["num_heads"])

    def function(query, key, value, table):
        causal = settings["causal"]
        bias = biases.Relative(table.T, farthest=settings["farthest"], causal=causal)
        # T5 has no scale.
        query *= query.shape[-1] ** 0.5
        return dense.attend(config, query, key, value, masks.causal() if causal else Mask(), bias)

    return function


@ours("alibi")
def _(settings, arrays):
    config = dense.Config(num_heads=settings["num_heads"])
    # Theirs grows with the key's position: the same but for a number a row, which no softmax sees.
    bias = biases.Linear(biases.slopes(settings["num_heads"]).astype(float))
    return functools.partial(dense.attend, config, mask=masks.causal(), bias=bias)


@ours("differential", ROUNDED)
def _(settings, arrays):
    def pairs(x):
        """Their heads i and i + N / 2 make a pair, ours 2i and 2i + 1."""
        return x.reshape(*x.shape[:2], 2, -1, x.shape[-1]).swapaxes(2, 3).reshape(x.shape)

    config = own(differential.Config)(settings)

    def function(query, key, value, **lambdas):
        stacked = jnp.stack([lambdas[name] for name in differential.VECTORS])
        gain = jnp.ones(2 * query.shape[-1])
        heads = [pairs(x) for x in (query, key, value)]
        out = differential.attend(config, *heads, masks.causal(), stacked, gain)
        return out.reshape(*out.shape[:2], -1, gain.size)

    return function


@ours("mla", ROUNDED)
def _(settings, arrays):
    N, H, Hr = (settings[name] for name in ("num_heads", "plain", "rotated"))
    R, low_query = settings["low"], settings["low_query"]
    config = mla.Config(num_heads=N, head_dim=H, latent=R, query_latent=low_query, rope_dim=Hr)

    def halves(x):
        """Theirs turns neighbours, ours features half the width apart: [Hr, ...] in our order."""
        return jnp.concatenate([x[0::2], x[1::2]])

    def function(inputs, **weights):
        w = {name.removesuffix(".weight"): x for name, x in weights.items()}
        query = w["q_b_proj"].reshape(N, H + Hr, -1)
        query = jnp.concatenate([query[:, :H], jax.vmap(halves)(query[:, H:])], axis=1)
        latent, key = jnp.split(w["kv_a_proj_with_mqa"], [R])
        up_key, up_value = jnp.split(w["kv_b_proj"].reshape(N, 2 * H, R), 2, axis=1)

        def layer(x):
            x = x.reshape(-1, x.shape[-1])
            return {"kernel": x.T, "bias": jnp.zeros(len(x))}

        params = {
            "query_latent": layer(w["q_a_proj"]),
            "query_norm": {"scale": w["q_a_layernorm"]},
            "query": layer(query),
            "latent": layer(latent),
            "latent_norm": {"scale": w["kv_a_layernorm"]},
            "key": layer(halves(key)),
            "up_key": {"kernel": layer(up_key)["kernel"]},
            "up_value": {"kernel": layer(up_value)["kernel"]},
            "out": layer(w["o_proj"]),
        }
        rotate = functools.partial(model.rotate, base=settings["base"])
        module = mla.Attention(config)
        return module.apply({"params": params}, inputs, mask=masks.causal(), rotate=rotate)

    return function


@ours("nystrom")
def _(settings, arrays):
    return functools.partial(nystrom.attend, own(nystrom.Config)(settings), mask=Mask())


@ours("longformer_window")
def _(settings, arrays):
    config = own(longformer.Config)(settings)
    return functools.partial(longformer.attend, config, mask=seen(arrays))


@ours("bigbird_blocks")
def _(settings, arrays):
    """A layout of the blocks that it drew: `bigbird` draws others, and has no global last one."""
    block = settings["block"]
    places = np.arange(arrays["query"].shape[1] // block)
    layout = (abs(places[:, None] - places) <= 1).astype(int)
    for row, found in enumerate(arrays["random"][0]):
        layout[row + 1, found] = 1
    for edge in (0, -1):
        layout[edge] = layout[:, edge] = 1
    config = blocks.Config(num_heads=1, block=block, layout=tuple(map(tuple, layout)))
    return functools.partial(blocks.attend, config, mask=seen(arrays))


@ours("reformer_lsh")
def _(settings, arrays):
    """One chunk of all tokens, where keys are the queries at length 1 and no token sees itself.

    More chunks are not comparable: theirs see all tokens of a chunk and the one before, of any bucket.
    """
    T, N, H = arrays["query"].shape[1:]
    config = lsh.Config(num_heads=N, buckets=1, span=T)

    def function(query, value):
        key = query / jnp.sqrt((query**2).mean(-1, keepdims=True) + 1e-6)
        # Ours sees itself: values that say whose they are give the weights, to take it out of them.
        which = jnp.broadcast_to(jnp.eye(T, H)[:, None], query.shape)
        weights = lsh.attend(config, query, key, which, masks.causal()).swapaxes(1, 2)
        # But the first has no other.
        weights *= 1 - jnp.diag(jnp.arange(T) > 0)
        return jnp.einsum("bnts,bsnh->btnh", weights / weights.sum(-1, keepdims=True), value)

    return function


@ours("linear", ROUNDED)
@ours("based", ROUNDED)
def _(settings, arrays):
    config = own(linear.Config)(settings, chunk=4)
    return functools.partial(linear.attend, config, mask=masks.causal())


@ours("retention", ROUNDED)
def _(settings, arrays):
    """Theirs does not divide by the root of a row's sum of decays."""
    T, N = arrays["query"].shape[1:3]
    config = retention.Config(num_heads=N, chunk=4)
    gamma = 1 - 0.5 ** (5 + np.arange(N))
    root = np.sqrt((gamma ** np.arange(T)[:, None]).cumsum(0))[..., None]
    return lambda **heads: retention.attend(config, **heads, mask=masks.causal()) * root


@ours("gla", ROUNDED)
def _(settings, arrays):
    config = gla.Config(num_heads=settings["num_heads"], tau=1.0, chunk=4)

    def function(query, key, value, decay):
        gate = decay - jnp.log1p(-jnp.exp(decay))  # the logit of exp(decay)
        return gla.attend(config, query, key, value, masks.causal(), gate)

    return function


@ours("deltanet", ROUNDED)
@ours("gated_delta_rule", ROUNDED)
def _(settings, arrays):
    """Theirs has a scale of 1 / sqrt(H); a rate of 1 makes the decay exp(-softplus(logit))."""
    N, H = arrays["query"].shape[2:]
    config = deltanet.Config(num_heads=N, gated="decay" in arrays, chunk=4)

    def function(query, key, value, beta, decay=None):
        gates = {"beta": jnp.log(beta) - jnp.log1p(-beta)}
        if config.gated:
            gates |= {"decay": jnp.log(jnp.expm1(-decay)), "rate": jnp.zeros(N)}
        return deltanet.attend(config, query, key, value, masks.causal(), **gates) * H**-0.5

    return function


@ours("nsa")
def _(settings, arrays):
    """Logits of 0 make the compression a mean."""
    zeros = jnp.zeros((settings["block"], settings["num_kv_heads"]))
    given = {"compress_key": zeros, "compress_value": zeros, "mask": masks.causal()}
    return functools.partial(nsa.attend, own(nsa.Config)(settings), **given)


@ours("dsa")
def _(settings, arrays):
    index = {name: x for name, x in arrays.items() if name.startswith("index_")}
    config = own(dsa.Config)(settings, k=settings["top"], index_dim=index["index_key"].shape[-1])
    return functools.partial(dsa.attend, config, mask=masks.causal(), **index)
