"""Options and settings of the whole suite."""

import os
import pathlib

# Before JAX starts: two devices for the tests of sharded programs, and no accelerator needed.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
# Programs and notebooks that tests start compile in less time too.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax
import pytest

# Kernels by the compiler's older emitters, in one piece instead of 32 for threads that the other worker
# uses: less than half of the time, and numbers of the same precision.
CHEAP = (
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def pytest_configure(config):
    """Compiles in less time where no chosen test is `optimised`: XLA reads its flags once a process."""
    flags = os.environ.get("XLA_FLAGS", "")
    if config.option.markexpr == "not optimised" and CHEAP not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {CHEAP}"


def pytest_addoption(parser):
    parser.addoption("--attention", default="", help="only this variant; dotted for a fork's own")
    parser.addoption(
        "--scheme", default="", help="only this weight scheme; dotted for a fork's own"
    )


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


def maps():
    """How many memory maps this process has; 0 where they are not limited."""
    path = pathlib.Path("/proc/self/maps")
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.fixture(autouse=True)
def _optimised(request):
    """Compiles as users do where a test is marked so; elsewhere in less time, for most goes there."""
    marked = request.node.get_closest_marker("optimised") is not None
    jax.config.update("jax_disable_most_optimizations", not marked)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
    """Double precision within a test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
