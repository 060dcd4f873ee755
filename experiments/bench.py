"""Speed, measured: ours and peers in turns, in one process, as ratios with their spread.

    python -m experiments.bench --suite=step --workdir=runs/bench

Suites: `step` (whole training steps beside the same model in eager PyTorch), `attention` (the dense core,
forward and with its gradient, beside `jax.nn`, flax and PyTorch), `length` (every mechanism beside our
dense core, time and peak memory by length) and `weights` (training steps under each scheme beside the plain
one); `make bench` installs PyTorch. Writes `<suite>.jsonl` and
`<suite>.md`, and `length` a figure.
"""

import importlib
import os
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
    common = {**records.environment(), "product_rate": product_rate()}
    workdir.mkdir(parents=True, exist_ok=True)
    results = []
    for shape in tqdm(suite.SHAPES, desc=name):
        results.append(suite.measure(shape) | common)
        # After each: a suite that is stopped keeps what it measured.
        records.write_lines(workdir / f"{name}.jsonl", results)
    (workdir / f"{name}.md").write_text(suite.table(results), encoding="utf-8")
    if hasattr(suite, "figure"):
        suite.figure(results).savefig(workdir / f"{name}.png")
    print(suite.table(results))


if __name__ == "__main__":
    flags.DEFINE_string("suite", "step", f"One of {list(SUITES)}.")
    flags.mark_flag_as_required("workdir")
    app.run(main)
