"""Timing of sides that take turns, so that what disturbs the machine disturbs all of them."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LEAST = 7  # rounds of short calls, however many sides there are
LONG = 0.5  # seconds from which a call is long: what came before it weighs nothing, and 3 rounds do
BATCH = 0.01  # seconds of calls, one after the other, that a device which is asked for them is timed over


class Sample(NamedTuple):
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values) -> "Sample":
        low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
        return cls(float(median), float(low), float(high))


class Side(NamedTuple):
    """What is timed: `run` makes so many calls and waits for the last."""

    run: Callable[[], None]
    calls: int


def side(start: Callable[[], Any], wait: Callable[[Any], Any] = jax.block_until_ready) -> Side:
    """A side whose calls `start` asks for and `wait` waits for; it is warm afterwards.

    A CPU makes one call a sample. A GPU works while Python goes on, so that of one short call most would
    be its launch and the wait: there a sample is as many calls as fill `BATCH`.
    """

    def run(calls):
        for _ in range(calls):
            out = start()
        wait(out)

    one = functools.partial(run, 1)
    one()
    if jax.default_backend() == "cpu":
        return Side(one, 1)
    calls = max(1, round(BATCH / min(_seconds(one) for _ in range(3))))
    return Side(functools.partial(run, calls), calls)


def rounds(sides: list[Callable], seconds: float) -> np.ndarray:
    """Seconds [sides, rounds] of one call of each side a round, for about `seconds` in all."""
    samples, end, least = [], time.perf_counter() + seconds, LEAST
    while time.perf_counter() < end or len(samples) < least:
        samples.append([_once(side) for side in sides])
        least = 3 if max(samples[0]) > LONG else LEAST
    return np.array(samples).T


def _once(side: Callable) -> float:
    """Of a second call if it is short: in the first, threads of the side before may still be spinning."""
    first = _seconds(side)
    return first if first > LONG else _seconds(side)


def _seconds(side: Callable) -> float:
    start = time.perf_counter()
    side()
    return time.perf_counter() - start


def product_rate(n: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of the best n x n x n float32 product of JAX on this machine, at its default precision."""
    x = jnp.ones((n, n))
    product = side(functools.partial(jax.jit(jnp.matmul), x, x))
    times, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        times.append(_seconds(product.run) / product.calls)
    return 2 * n**3 / min(times)
