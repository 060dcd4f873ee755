"""The sides of the attention suite: one function of queries, keys and values each, and how it is run."""

import functools
from collections.abc import Callable
from importlib import metadata
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tinyattn.attention.full import dense
from tinyattn.masks import Mask


class Run(NamedTuple):
    """A side at one shape: what asks for a call, what waits for it, and its arrays [B, T, N, H]."""

    start: Callable[[], Any]
    wait: Callable[[Any], Any]
    arrays: Callable[[Any], list]


def _ours(query, key, value):
    return dense.attend(dense.Config(num_heads=query.shape[2]), query, key, value, Mask())


def _tokamax():
    import tokamax

    # Its kernels, and not XLA in their place.
    return functools.partial(tokamax.dot_product_attention, implementation=("mosaic", "triton"))


JAX = {
    "ours": lambda: _ours,
    "jax.nn": lambda: jax.nn.dot_product_attention,
    "jax.nn cuDNN": lambda: functools.partial(jax.nn.dot_product_attention, implementation="cudnn"),
    "flax": lambda: nn.dot_product_attention,
    "tokamax": _tokamax,
}


def _sdpa():
    import torch.nn.functional as F

    return F.scaled_dot_product_attention


def _flex():
    import torch
    from torch.nn.attention.flex_attention import flex_attention

    # It compiles anew for each shape, and what is compiled is counted by function.
    torch.compiler.reset()
    return torch.compile(flex_attention, dynamic=False)


TORCH = {"torch": _sdpa, "FlexAttention": _flex}


def label(name: str) -> str:
    """The name in the records, with the version of what these do not tell."""
    if name not in ("torch", "tokamax"):
        return name
    try:
        return f"{name} {metadata.version(name)}"
    except metadata.PackageNotFoundError:
        return name


def placed(arrays) -> list[jax.Array]:
    """The arrays [B, T, N, H], their examples split over all devices."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    return [jax.device_put(x, NamedSharding(mesh, P("data"))) for x in arrays]


def _with_gradient(function):
    def both(*x):
        out, pull = jax.vjp(function, *x[:3])
        return out, *pull(x[3])

    return both


def reference(arrays) -> list:
    """The output and the gradients [B, T, N, H] in float32, as exact as the device makes them."""
    config = dense.Config(num_heads=arrays[0].shape[2])
    function = functools.partial(dense.reference, config, mask=Mask())
    with jax.default_matmul_precision("highest"):
        return [np.asarray(x) for x in jax.jit(_with_gradient(function))(*arrays)]


def run(name: str, arrays, given) -> Run:
    """A side by its name.

    Args:
      name: In `JAX` or `TORCH`.
      arrays: Queries, keys, values and the gradient of the output, NumPy's.
      given: The same where JAX has them; three of them ask for the output alone.
    """
    return _jax_run(name, given) if name in JAX else _torch_run(name, arrays, len(given) == 4)


def _jax_run(name: str, given) -> Run:
    function = JAX[name]()
    if len(given) == 4:
        function = _with_gradient(function)
    if jax.device_count() > 1:
        mesh = given[0].sharding.mesh
        function = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(P("data"),) * len(given),
            out_specs=P("data"),
            check_vma=False,
        )
    start = functools.partial(jax.jit(function), *given)
    return Run(start, jax.block_until_ready, jax.tree.leaves)


def _torch_run(name: str, arrays, both: bool) -> Run:
    import torch

    from experiments import peer

    function, device = TORCH[name](), peer.device()
    there = [
        torch.from_numpy(x.astype(np.float32))
        .to(device, getattr(torch, x.dtype.name))
        .transpose(1, 2)
        .contiguous()
        .requires_grad_()
        for x in arrays
    ]
    weight = there[3].detach()

    def forward():
        with torch.no_grad():
            return (function(*there[:3]),)

    def backward():
        out = function(*there[:3])
        return out, *torch.autograd.grad(out, there[:3], weight)

    def read(outs):
        return [x.detach().transpose(1, 2).float().cpu().numpy() for x in outs]

    return Run(backward if both else forward, peer.wait, read)


def distance(run: Run, part, exact, tolerance: float) -> float:
    """How far a side is from the reference at the farthest of its arrays, in norms of that.

    Raises:
      ValueError: Too far.
    """
    found = [np.asarray(x)[part].astype(np.float32) for x in run.arrays(run.start())]
    pairs = zip(found, exact, strict=False)  # without gradients there is the output alone
    far = max(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs)
    if not far <= tolerance:
        raise ValueError(f"{far:.1e} norms from the reference, where {tolerance:.1e} are allowed")
    return far
