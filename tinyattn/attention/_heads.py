"""What variants share: heads and their projections, the work these are, and the checks."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from tinyattn import affine, axes
from tinyattn.masks import Mask


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heads:
    """What every multi-head variant shares.

    Attributes:
      num_heads: Query heads (N).
      num_kv_heads: Key/value heads (K), a divisor of N; 0 is N (multi-head), 1 is multi-query.
      head_dim: Head width (H); 0 is D / N.
    """

    num_heads: int = 4
    num_kv_heads: int = 0
    head_dim: int = 0

    def __post_init__(self):
        if self.num_heads < 1 or self.num_kv_heads < 0 or self.head_dim < 0:
            raise ValueError(
                f"num_heads={self.num_heads} must be positive, num_kv_heads={self.num_kv_heads} and"
                f" head_dim={self.head_dim} positive or 0 for their defaults"
            )
        if self.num_heads % self.kv_heads:
            divisors = [k for k in range(1, self.num_heads + 1) if self.num_heads % k == 0]
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads};"
                f" try one of {divisors}"
            )

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.num_heads

    def width(self, D: int) -> int:
        """Head width (H) in a model of width D.

        Raises:
          ValueError: D is not a multiple of num_heads and head_dim is not given.
        """
        if not self.head_dim and D % self.num_heads:
            raise ValueError(
                f"num_heads={self.num_heads} must divide the model width {D}, or give head_dim"
            )
        return self.head_dim or D // self.num_heads


class Work(NamedTuple):
    """Products of one part of a variant, in FLOPs an example: run, and needed by allowed pairs.

    Attributes:
      executed: What runs.
      useful: What the pairs that count need.
      projection: Whether it makes heads of tokens or tokens of heads, so that no two tokens meet.
    """

    executed: int
    useful: int | float
    projection: bool = False


def check(
    name: str,
    supports: frozenset[str],
    mask: Mask,
    *,
    cross: bool = False,
    bias: bool = False,
) -> None:
    """Refuses what a variant cannot honour, so that no mask is ever dropped in silence.

    Args:
      name: The variant's name, for the message.
      supports: Its `SUPPORTS`.
      mask: The mask asked for.
      cross: Whether keys come from another sequence than queries.
      bias: Whether a bias is to be added to the scores.

    Raises:
      ValueError: Something asked for is not supported.
    """
    asked = mask.kinds | ({"cross"} if cross else set()) | ({"bias"} if bias else set())
    if cross and asked & {"causal", "window"}:
        raise ValueError(
            "positions of two sequences are not comparable: give no causal or window mask when the"
            " keys come from another sequence"
        )
    if missing := sorted(asked - supports):
        alone = ", or give each text a row of its own" if "segments" in missing else ""
        raise ValueError(
            f"attention {name.rsplit('.', 1)[-1]!r} cannot honour {', '.join(missing)}; it supports"
            f" {', '.join(sorted(supports)) or 'no mask at all'}: choose another variant{alone}"
        )


def check_shapes(query, key, value, *, own: str = "") -> dict[str, int]:
    """The sizes B T N H S K of projected heads.

    Args:
      query: [B, T, N, H].
      key: [B, S, K, H].
      value: [B, S, K, H].
      own: What needs the keys to be of the queries' own sequence, for the message; "" is nothing.

    Raises:
      ValueError: They do not fit together.
    """
    found = axes.sizes(query=(query, "BTNH"), key=(key, "BSKH"), value=(value, "BSKH"))
    if found["N"] % found["K"]:
        raise ValueError(f"{found['K']} key/value heads must divide {found['N']} query heads")
    if own and found["S"] != found["T"]:
        T, S = found["T"], found["S"]
        raise ValueError(f"{own} needs keys of the queries' own sequence: {T=}, {S=}")
    return found


Rotate = Callable[[jax.Array], jax.Array]


def project(
    config: Heads,
    inputs: jax.Array,
    memory: jax.Array | None = None,
    *,
    rotate: Rotate | None = None,
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),
    shared: Mapping[str, jax.Array] = types.MappingProxyType({}),
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Projects to heads; to be called within a compact module, which gets query, key and value.

    Args:
      config: Number and width of heads.
      inputs: [B, T, D].
      memory: [B, S, D] that keys and values come from; None is the inputs themselves.
      rotate: Applied to the query and the key heads, as rotary positions are.
      kernel_init: Of the [d_in, d_out] kernels.
      shared: Heads of an earlier layer by name, taken as they are and not projected again.

    Returns:
      query [B, T, N, H], key [B, S, K, H] and value [B, S, K, H].
    """
    H, found = config.width(inputs.shape[-1]), dict(shared)
    counts = {"query": config.num_heads, "key": config.kv_heads, "value": config.kv_heads}
    own = [name for name in counts if name not in shared]
    together = [own] if memory is None else [own[:1], own[1:]] if "query" in own else [[], own]
    for names, x in zip(together, (inputs, memory), strict=False):
        if not names:
            continue
        layers = {name: counts[name] * H for name in names}
        for name, part in zip(names, affine.dense(x, layers, kernel_init), strict=True):
            heads = part.reshape(*part.shape[:-1], -1, H)
            found[name] = rotate(heads) if rotate and name != "value" else heads
    return found["query"], found["key"], found["value"]


def merge(
    heads: jax.Array,
    D: int,
    *,
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal(),
) -> jax.Array:
    """Projects [B, T, N, H] back to [B, T, D]; to be called within a compact module."""
    flat = heads.reshape(*heads.shape[:-2], -1)
    return affine.dense(flat, {"out": D}, kernel_init)[0]


def projection_flops(config: Heads, *, D: int, T: int, S: int) -> dict[str, Work]:
    """The products of `project` and `merge`: all useful."""
    N, K, H = config.num_heads, config.kv_heads, config.width(D)
    parts = {"query": T * D * N * H, "key": S * D * K * H, "value": S * D * K * H}
    parts["out"] = T * N * H * D
    return {name: products(n) for name, n in parts.items()}


def products(multiply_adds: int) -> Work:
    """The work of a projection, all of it useful."""
    return Work(2 * multiply_adds, 2 * multiply_adds, projection=True)


def repeat_heads(x: jax.Array, num_heads: int) -> jax.Array:
    """[B, S, K, H] to [B, S, N, H]: each key/value head serves N / K query heads in a row."""
    return jnp.repeat(x, num_heads // x.shape[2], axis=2)
