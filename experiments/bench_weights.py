"""The weights suite: a training step under each way of storing weights, in turns with the plain step."""

import jax
import jax.numpy as jnp
import numpy as np
from tabulate import tabulate

from experiments import bench_step
from experiments.timing import Sample, rounds
from tinyattn import cost, train
from tinyattn.weights import presets
from tinyattn.weights import spec as weights

STEPS = 5  # a dispatch
SECONDS = 30.0  # of sampling for each shape
T, L = 64, 2
# Batch and width. What a scheme adds to a step is the same for every batch, so that a larger one hides it:
# 1,024 tokens, and the 4,096 of the step suite.
SHAPES = ((16, 64), (16, 256), (64, 256))

WAYS = {
    "plain": (),
    "W0 + D⊙V, row": (presets.both("row"),),
    "W0 + D⊙V, full": (presets.both("full"),),
    "seed + D⊙V, shared": (presets.both("row", w0="seed"), weights("share", keep="/d$")),
    "frozen seed": (presets.frozen(),),
    "LoRA, R=8": (presets.lora(8),),
    "VeRA, R=16": (presets.vera(16),),
    "IA³": (presets.ia3(),),
    "HiRA, R=8": (presets.hira(8),),
    "supermask": (presets.supermask(),),
    "BatchEnsemble": (presets.batch_ensemble(),),
    "shared": (weights("share"),),
    "pruned, 80%": (weights("prune", leaves=presets.KERNELS, sparsity=0.8),),
    "int8": (weights("quantize", leaves=presets.KERNELS),),
}


def shapes() -> tuple[tuple[int, int], ...]:
    """Batches and widths (B, D)."""
    return SHAPES


def measure(shape: tuple[int, int]) -> dict:
    """Seconds, peak bytes and FLOPs of a training step of each way at batch B and width D, float32."""
    B, D = shape
    sides = {name: side(way, B, D) for name, way in WAYS.items()}
    seconds = rounds([run for run, _ in sides.values()], SECONDS) / STEPS
    plain = seconds[list(sides).index("plain")]
    found = {}
    for own, (name, (_, known)) in zip(seconds, sides.items(), strict=True):
        ratio = Sample.of(own / plain)._asdict()
        found[name] = known | {"seconds": float(np.median(own)), "ratio": ratio}
    return {"suite": "weights", "D": D, "shape": f"B{B} T{T} D{D} L{L}", "ways": found}


def side(way: tuple, B: int, D: int):
    """What runs STEPS steps, and what is known of a step before it runs."""
    program = train.make(bench_step.config(B, T, D, L, 1) | {"weights": way})
    state = program.init(0)
    data = jax.tree.map(jnp.asarray, program.task.train)
    batch = jax.tree.map(lambda x: x[:B], data)
    known = {
        "training_flops": cost.count(program.step, state, batch).products,
        "peak_bytes": cost.peak_bytes(jax.jit(program.step).lower(state, batch).compile()),
    }
    indices = jnp.asarray(train.batches(0, len(data.labels), B, 0, STEPS))

    def run():
        nonlocal state
        state, sums = program.run(state, data, indices)
        jax.block_until_ready(sums)

    # Compiled twice: a state comes back placed on all devices, as it was not at first.
    run()
    run()
    return run, known


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    heads = ["weights"]
    for r in results:
        heads += [f"{r['shape']}: time", "quartiles", "FLOPs", "peak bytes"]
    rows = []
    for name in results[0]["ways"]:
        row = [name]
        for r in results:
            own, plain = r["ways"][name], r["ways"]["plain"]
            ratio = own["ratio"]
            row += [f"{ratio['median']:.2f}x", f"{ratio['low']:.2f}-{ratio['high']:.2f}"]
            row += [f"{own[key] / plain[key]:.2f}x" for key in ("training_flops", "peak_bytes")]
        rows.append(row)
    times = ", ".join(
        f"{1e3 * r['ways']['plain']['seconds']:.1f} ms at {r['shape']}" for r in results
    )
    notes = (
        f"Of a training step, over the plain one's, which takes {times}; less than 1 is better. Time:"
        f" median over rounds in which all take turns, {STEPS} steps a round. {results[0]['device']}."
    )
    align = ["left"] + ["right"] * (len(heads) - 1)
    wide = tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{wide}\n\n{notes}\n"
