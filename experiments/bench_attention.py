"""The attention suite: the dense core beside its peers, forward and with gradients.

On a CPU in float32 beside `jax.nn`, flax and PyTorch; on a GPU in bfloat16 beside `jax.nn`, in XLA and in
cuDNN, tokamax, PyTorch and FlexAttention.
"""

import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from experiments import attention_sides
from experiments.timing import Sample, rounds, side


class Setting(NamedTuple):
    """What is measured on one kind of device.

    Attributes:
      shapes: T, H of each.
      heads: N.
      tokens: B x T, so that every device has an example and a GPU is full.
      dtype: Of queries, keys, values and what comes back.
      tolerance: Most distance from the reference, in norms of it.
      seconds: Of sampling for each shape and direction.
      peers: Names in `attention_sides`.
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    tokens: int
    dtype: Any
    tolerance: float
    seconds: float
    peers: tuple[str, ...]


SETTINGS = {
    "cpu": Setting(
        shapes=tuple((T, H) for H in (32, 64) for T in (128, 512, 2048, 8192)),
        heads=4,
        tokens=8192,
        dtype=jnp.float32,
        tolerance=1e-5,
        seconds=4.0,
        peers=("jax.nn", "flax", "torch"),
    ),
    "gpu": Setting(
        shapes=tuple((T, H) for H in (64, 128) for T in (512, 2048, 8192)),
        heads=16,
        tokens=16384,
        dtype=jnp.bfloat16,
        # A rounding to 8 bits moves a number by 2^-8 of itself at most. From queries to gradients there
        # are five: probabilities, the output, gradients of probabilities and of scores, the result.
        tolerance=5 * 2.0**-8,
        seconds=1.0,
        peers=("jax.nn", "jax.nn cuDNN", "tokamax", "torch", "FlexAttention"),
    ),
}


def setting() -> Setting:
    """That of the device here."""
    return SETTINGS["cpu" if jax.default_backend() == "cpu" else "gpu"]


def shapes() -> tuple[tuple[int, int], ...]:
    """T, H of each."""
    return setting().shapes


def measure(shape: tuple[int, int]) -> dict:
    """Seconds of each side at one shape; all first prove that they compute the same."""
    (T, H), own = shape, setting()
    N, B = own.heads, max(own.tokens // T, jax.device_count())
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal((B, T, N, H), np.float32).astype(own.dtype) for _ in range(4)]
    part = np.s_[:: max(B - 1, 1), :, :: max(N - 1, 1)]  # the corners of examples and heads
    exact = attention_sides.reference([x[part].astype(np.float32) for x in arrays])
    placed = attention_sides.placed(arrays)
    result = {"suite": "attention", "shape": f"B{B} T{T} N{N} H{H}", "B": B, "T": T, "H": H}
    result["dtype"] = jnp.dtype(own.dtype).name
    for direction in ("forward", "both"):
        given, sides, found = placed[: 4 if direction == "both" else 3], {}, {}
        for name in ("ours", *own.peers):
            label = attention_sides.label(name)
            try:
                run = attention_sides.run(name, arrays, given)
                distance = attention_sides.distance(run, part, exact, own.tolerance)
                sides[label], found[label] = side(run.start, run.wait), {"distance": distance}
            except Exception as error:
                if name == "ours":
                    raise
                found[label] = {"failed": _reason(error)}
                print(f"{label} at {result['shape']}: {_reason(error)}", file=sys.stderr)
        seconds = rounds([s.run for s in sides.values()], own.seconds)
        seconds /= np.array([[s.calls] for s in sides.values()])
        for (label, s), times in zip(sides.items(), seconds, strict=True):
            found[label] |= {"seconds": float(np.median(times)), "calls": s.calls}
            found[label]["ratio"] = Sample.of(times / seconds[0])._asdict()
        result[direction] = found
    return result


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}"


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    peers = [name for name in results[0]["forward"] if name != "ours"]
    heads = ["shape", "direction", "ours, ms", *(f"{p} / ours" for p in peers)]
    rows, reasons = [], {}
    for r in results:
        for direction, label in (("forward", "forward"), ("both", "with gradient")):
            own = r[direction]
            reasons |= {f"{p}: {own[p]['failed']}": None for p in peers if "failed" in own[p]}
            rows.append([r["shape"], label, _milliseconds(own["ours"]["seconds"])])
            rows[-1] += [_ratio(own[p]) for p in peers]
    notes = (
        f"More than 1 is faster than the peer: median (quartiles) over rounds in which all take"
        f" turns. {results[0]['dtype']}, no mask. {results[0]['device']}."
    )
    if reasons:
        notes += "\n\nNot measured:\n\n" + "\n".join(f"- {reason}" for reason in reasons)
    align = ["left", "left"] + ["right"] * (len(heads) - 2)
    return (
        tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
        + f"\n\n{notes}\n"
    )


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds >= 1e-3 else f"{1e3 * seconds:.3f}"


def _ratio(cell: dict) -> str:
    if "failed" in cell:
        return "—"
    q = cell["ratio"]
    return f"{q['median']:.2f}x ({q['low']:.2f}-{q['high']:.2f})"
