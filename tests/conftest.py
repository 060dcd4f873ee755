"""Options and settings of the whole suite.

Its time is that of tracing and compiling: a fifth of a second a program, however small its arrays. So the
tests of a file share jitted functions and shapes, compile a formula whole and not operation by operation,
draw and change inputs by NumPy, and are `optimised`, which is four times as dear, only where an optimising
compiler could break what they test.
"""

import functools
import gc
import os
import pathlib
import threading

# Before JAX starts: two devices for the tests of sharded programs, and no accelerator needed.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Programs and notebooks that tests start compile in less time too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Nor does lowering write down where in the code each operation stands: a twelfth of the suite's time.
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
# Workers share a GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import pytest
from jax._src.interpreters import mlir

# A program's kernels in one piece, instead of 32 for threads that the other worker uses.
WHOLE = "--xla_cpu_parallel_codegen_split_count=1"
# By the compiler's older emitters: with that less than half of the time, and numbers of the same precision.
CHEAP = "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
# A thread lowers all its programs in one context, as JAX itself shares them from 0.11 on: making one is a
# fifth of a small program's time, and a program holds its own, which were two thirds of a worker's memory.
CONTEXTS = functools.cache(lambda thread, make=mlir.make_ir_context: make())
mlir.make_ir_context = lambda: CONTEXTS(threading.get_ident())
# On a GPU the same bits each time: no atomic sums, and no kernels chosen by a clock.
SAME = "--xla_gpu_deterministic_ops=true"


def pytest_configure(config):
    """Sets XLA's flags, which it reads once a process.

    Compiles in less time where no chosen test is `optimised`.
    """
    for flags in (SAME, WHOLE, CHEAP if config.option.markexpr == "not optimised" else ""):
        if flags not in os.environ.get("XLA_FLAGS", ""):
            os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


def pytest_collection_finish():
    """Looks for garbage less often: a program being traced is many objects, and none of them garbage."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def pytest_addoption(parser):
    parser.addoption("--attention", default="", help="only this variant; dotted for a fork's own")
    parser.addoption(
        "--scheme", default="", help="only this weight scheme; dotted for a fork's own"
    )


def pytest_runtest_setup(item):
    if item.get_closest_marker("cpu") and jax.default_backend() != "cpu":
        pytest.skip("of programs that only a CPU runs")


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs between parts of the suite, if they are many.

    Each takes a few memory maps, of which Linux gives a process 65,530: beyond, LLVM crashes it.
    """

    def part(item):
        return item and (
            item.path,
            getattr(item, "callspec", None) and item.callspec.params.get("case"),
        )

    if part(item) != part(nextitem) and maps() > 16_000:
        jax.clear_caches()
        CONTEXTS.cache_clear()


def maps():
    """How many memory maps this process has; 0 where they are not limited."""
    path = pathlib.Path("/proc/self/maps")
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(autouse=True, scope="session")
def on_cpu():
    """Whether this is a CPU. Elsewhere float32 is multiplied as such, also by programs that tests start."""
    cpu = jax.default_backend() == "cpu"
    if not cpu:
        os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "0"
        jax.config.update("jax_default_matmul_precision", "highest")
    return cpu


@pytest.fixture(autouse=True)
def _optimised(request, on_cpu):
    """Compiles as users do where a test is marked so; elsewhere in less time, for most goes there."""
    marked = request.node.get_closest_marker("optimised") is not None
    jax.config.update("jax_disable_most_optimizations", on_cpu and not marked)
    yield
    jax.config.update("jax_disable_most_optimizations", on_cpu)


@pytest.fixture
def x64():
    """Double precision within a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
