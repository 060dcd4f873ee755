"""One layer of ALBERT in JAX, norms after the sums: ours has them before, so it is written out here.

Source: Lan et al. 2020, https://arxiv.org/abs/1909.11942, section 3.1, with BERT's layer; the exact GELU.
"""

import jax
import jax.numpy as jnp


def layer(params, x, heads, epsilon):
    """Params {module: {kernel and bias, or scale and bias}}, x [B, T, D] -> [B, T, D]."""

    def linear(name, x):
        return x @ params[name]["kernel"] + params[name]["bias"]

    def norm(name, x):
        x = x - x.mean(-1, keepdims=True)
        x = x / jnp.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
        return x * params[name]["scale"] + params[name]["bias"]

    def split(x):
        return x.reshape(*x.shape[:2], heads, -1)

    query, key, value = (
        split(linear(f"attention.{name}", x)) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("BTNH,BSNH->BNTS", query, key) / jnp.sqrt(query.shape[-1])
    mixed = jnp.einsum("BNTS,BSNH->BTNH", jax.nn.softmax(scores), value).reshape(x.shape)
    x = norm("attention.LayerNorm", x + linear("attention.dense", mixed))
    ffn = linear("ffn_output", jax.nn.gelu(linear("ffn", x), approximate=False))
    return norm("full_layer_layer_norm", x + ffn)
