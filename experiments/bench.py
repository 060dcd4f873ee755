"""Speed, measured: ours and peers in turns, in one process, as ratios with their spread.

    python -m experiments.bench --suite=step --workdir=runs/bench

Suites: `step` (whole training steps beside the same model in eager PyTorch), `attention` (the dense core,
forward and with its gradient, beside `jax.nn`, flax and PyTorch; on a GPU beside cuDNN, tokamax and
FlexAttention), `length` (every mechanism beside our dense core, time and peak memory by length) and
`weights` (training steps under each scheme beside the plain one); `make bench` installs PyTorch. Writes
`<suite>.jsonl` and `<suite>.md`, and `length` a figure, after each shape; a shape that fails leaves the
others. A folder is of one device.
"""

import importlib
import json
import os
import traceback
from pathlib import Path

import jax
from absl import app, flags
from tqdm import tqdm

from experiments import cli
from experiments.timing import product_rate
from tinyattn import records, registry

SUITES = {name: f"experiments.bench_{name}" for name in ("step", "attention", "length", "weights")}


def main(argv: list[str]) -> None:
    name, workdir = flags.FLAGS.suite, Path(cli.WORKDIR.value)
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}")
    if name not in SUITES:
        raise SystemExit(f"error: no suite {name!r}; {registry.nearest(name, SUITES)}")
    # Before JAX starts: a device a core, as two threads of one device wait for each other more.
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", min(2, len(os.sched_getaffinity(0))))
    cli.cache_compilations()
    suite = importlib.import_module(SUITES[name])
    environment = records.environment()
    check_device(workdir / f"{name}.jsonl", environment["device"])
    failed = measure(suite, name, workdir, environment | {"product_rate": product_rate()})
    if failed:
        raise SystemExit("error: not measured: " + "; ".join(failed))


def check_device(path: Path, device: str) -> None:
    """Refuses to write over what another device measured."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    others = {json.loads(line)["device"] for line in lines} - {device}
    if others:
        raise SystemExit(
            f"error: {path} was measured on {' and '.join(sorted(others))}, and this is {device}:"
            " give another --workdir"
        )


def measure(suite, name: str, workdir: Path, common: dict) -> list[str]:
    """Measures and writes shape after shape; returns which failed, and why."""
    results, failed = [], []
    for shape in tqdm(suite.shapes(), desc=name):
        try:
            results.append(suite.measure(shape) | common)
        except Exception as error:
            traceback.print_exc()
            failed.append(f"{shape}, {type(error).__name__}")
            continue
        write(suite, name, workdir, results)
    if results:
        print(suite.table(results))
    return failed


def write(suite, name: str, workdir: Path, results: list[dict]) -> None:
    """The records, the table and, where there is one, the figure, each whole or as it was."""
    records.write_lines(workdir / f"{name}.jsonl", results)
    text = suite.table(results).encode()
    records.replace(workdir / f"{name}.md", lambda file: file.write(text))
    if hasattr(suite, "figure"):
        page = suite.figure(results)
        records.replace(workdir / f"{name}.png", lambda file: page.savefig(file, format="png"))


if __name__ == "__main__":
    flags.DEFINE_string("suite", "step", f"One of {list(SUITES)}.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
