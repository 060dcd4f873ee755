"""What a compiler says about a program and what a clock does: cross-checks of the exact counts."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


def compiler_flops(compiled: jax.stages.Compiled) -> float | None:
    """FLOPs of one call in XLA's own cost analysis, None where the backend gives none.

    A cross-check only: it counts a scan's body once, element-wise work as well, vendor kernels as
    nothing, and one device's share of a program over several.

    Args:
      compiled: `jax.jit(fn).lower(...).compile()`.
    """
    analysis = compiled.cost_analysis()
    if isinstance(analysis, list | tuple):
        analysis = analysis[0] if analysis else None
    flops = (analysis or {}).get("flops", -1.0)
    # XLA reports a negative number where it does not know.
    return float(flops) if flops >= 0 else None


def peak_bytes(compiled: jax.stages.Compiled) -> int | None:
    """Bytes of device memory that one call needs beyond its arguments, None where unknown.

    The compiler's temporaries plus its outputs, without the outputs that reuse a donated argument;
    for a train step this is the peak of its activations and gradients, on one device.

    Args:
      compiled: `jax.jit(fn).lower(...).compile()`.
    """
    stats = compiled.memory_analysis()
    if stats is None:
        return None
    return stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes


def latency(
    fns: Mapping[str, Callable[[], Any]], *, seconds: float = 1.0, rounds: int = 5
) -> dict[str, dict[str, float]]:
    """Time functions against the first of them, in turns, so that a busy machine slows them alike.

    Each is called twice to warm up (compilation, allocation). Then all are called once a round, in
    order, each until its result is ready.

    Args:
      fns: Functions of no argument by name; the first is the one the others are compared with.
        They are called many times, so they must not donate a buffer they hold.
      seconds: Time to go on measuring for (seconds), warm-up excluded.
      rounds: Rounds to measure at least, however long they take.

    Returns:
      By name: `latency_seconds`, the median time of a call (seconds); `latency_ratio`, the median
      over the rounds of its time divided by the first's in the same round; `latency_ratio_low` and
      `latency_ratio_high`, the quartiles of that ratio; `rounds`, how many were measured.

    Raises:
      ValueError: `fns` is empty or `rounds` is not positive.
    """
    if not fns or rounds < 1:
        raise ValueError(f"need a function to time and a round, got {list(fns)} and {rounds=}")
    for fn in fns.values():
        for _ in range(2):
            jax.block_until_ready(fn())
    samples = []
    end = time.perf_counter() + seconds
    while len(samples) < rounds or time.perf_counter() < end:
        samples.append([_seconds(fn) for fn in fns.values()])
    times = np.array(samples)
    low, ratio, high = np.quantile(times / times[:, :1], (0.25, 0.5, 0.75), axis=0)
    return {
        name: {
            "latency_seconds": float(np.median(times[:, i])),
            "latency_ratio": float(ratio[i]),
            "latency_ratio_low": float(low[i]),
            "latency_ratio_high": float(high[i]),
            "rounds": len(samples),
        }
        for i, name in enumerate(fns)
    }


def _seconds(fn: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(fn())
    return time.perf_counter() - start
