"""What the programs share: flags that fail early and clearly, interrupts, bars, compile cache."""

import importlib.util
import os
import re
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from tinyattn import config, records, registry, sweep

CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, FILE.py[:argument].")
WORKDIR = flags.DEFINE_string("workdir", None, "Directory for records, tables and checkpoints.")


def run(main: Callable[[], None]) -> None:
    """Runs a program whose flags are --config and --workdir.

    What a user got wrong (ValueError) is one line and exit status 2; an interrupt is status 130.
    """
    flags.mark_flags_as_required(["config", "workdir"])
    # As a scheduler ends a job: like Ctrl-C, so that the run is saved.
    signal.signal(signal.SIGTERM, signal.default_int_handler)

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {argv[1:]}; overrides are --config.KEY=VALUE")
        cache_compilations()
        # Before JAX starts. A setting of the environment counts, and a GPU does not mind.
        if "JAX_NUM_CPU_DEVICES" not in os.environ:
            jax.config.update("jax_num_cpu_devices", CONFIG.value.train.data_devices)
        main()

    try:
        app.run(guarded, flags_parser=parse)
    except (ValueError, flags.Error) as error:
        sys.exit(_fail("error: " + "; ".join(str(error).splitlines())))
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from here", file=sys.stderr)
        sys.exit(130)


def _fail(message: str) -> int:
    print(message, file=sys.stderr)
    return 2


def parse(argv: list[str]) -> list[str]:
    """Parses flags; a mistyped config key is refused with the nearest ones.

    Raises:
      ValueError: The config file is missing, or does not have a key that is overridden.
    """
    # A value follows its flag after "=" or as the next argument.
    given = "\n".join(argv[1:])
    if path := re.search(r"^--?config[=\n](.+)", given, re.MULTILINE):
        base = load(path[1]).get_config(*_argument(path[1]))
        for key in re.findall(r"^--?(?:no)?config\.([^=\n]+)", given, re.MULTILINE):
            if isinstance(config.check_key(base, key), Mapping | ml_collections.ConfigDict):
                raise ValueError(
                    f"--config.{key} is a section: override its fields one by one, or choose"
                    f" another part in the config file or by the argument after its colon"
                )
    return flags.FLAGS(argv)


def load(path: str):
    """Imports the config file of `FILE.py[:argument]`.

    Raises:
      ValueError: There is no such file, or no config in it.
    """
    file = Path(path.partition(":")[0])
    if not file.is_file():
        found = sorted(str(p) for p in file.parent.glob("*.py")) if file.parent.is_dir() else []
        near = registry.nearest(str(file), found) if found else "nor any other in its folder"
        raise ValueError(f"there is no config file {file}; {near}")
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_config"):
        raise ValueError(f"{file} has no get_config(arg=None) that returns a config")
    return module


def _argument(path: str) -> list[str]:
    _, colon, argument = path.partition(":")
    return [argument] if colon else []


def cache_compilations() -> None:
    """Keeps compiled programs on disk, so that a second run starts at once."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(records.cache() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class Bars(sweep.Watcher):
    """One bar for the table and one for the run."""

    def __init__(self):
        self._table: tqdm | None = None
        self._run: tqdm | None = None

    def table(self, done, total):
        if self._table is None:
            self._table = tqdm(total=total, initial=done, desc="table", unit="run", position=0)
        self._close_run()
        self._table.update(done - self._table.n)

    def start(self, row, seeds):
        self._close_run()
        label = f"{row}, seed {', '.join(map(str, seeds))}"
        self._run = tqdm(desc=label, unit="step", position=1, leave=False)

    def progress(self, progress):
        bar = self._run
        if bar.total is None:
            # A resumed run starts where it was saved; only the steps from here on have a speed.
            bar.reset(total=progress.steps)
            bar.initial = max(progress.step - progress.stride, 0)
        bar.n = progress.step
        shown = {"loss": f"{progress.loss:.3f}"}
        if progress.accuracy == progress.accuracy:
            shown["accuracy"] = f"{progress.accuracy:.1%}"
        if progress.validation == progress.validation:
            form = ".1%" if progress.metric.percent else ".3f"
            name = "validation" if progress.metric.percent else f"validation {progress.metric.name}"
            shown[name] = f"{progress.validation:{form}}"
        bar.set_postfix(shown)

    def _close_run(self):
        if self._run is not None:
            self._run.close()
            self._run = None

    def close(self):
        """Leaves the terminal to what is printed next."""
        self._close_run()
        if self._table is not None:
            self._table.close()
