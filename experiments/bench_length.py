"""The length suite: sparse and linear mechanisms in turn with our own dense core, time and peak memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.pareto import COLOURS, DPI, MARKERS
from experiments.timing import Sample, rounds
from tinyattn import attention, cost, masks
from tinyattn.masks import Mask

SECONDS = 4.0  # of sampling for each length and direction
LENGTHS = (256, 2048, 8192, 16384)
HEADS, WIDTH = 4, 32
# Fields other than the defaults, where the mechanism is measured at a size that is asked for.
FIELDS = {"window": {"window": 256}, "linformer": {"length": max(LENGTHS)}}
FAMILIES = ("sparse", "lowrank", "recurrent")  # beside `dense`, which all are compared with

SHAPES = LENGTHS


def measure(T: int) -> dict:
    """Seconds and peak bytes of each mechanism at T tokens, one example in float32, causal if it can be."""
    result = {"suite": "length", "T": T, "N": HEADS, "H": WIDTH, "variants": {}}
    sides = {name: programs(name, T) for name in names()}
    for direction in ("forward", "both"):
        seconds = rounds([side[direction][0] for side in sides.values()], SECONDS)
        dense = seconds[list(sides).index("dense")]
        for (name, side), own in zip(sides.items(), seconds, strict=True):
            result["variants"].setdefault(name, {})[direction] = {
                "seconds": float(np.median(own)),
                "dense_over_it": Sample.of(dense / own)._asdict(),
                "peak_bytes": side[direction][1],
            }
    return result


def names() -> list[str]:
    """The dense core and all that claims to grow slower."""
    family = {name: attention.load(name).__name__.split(".")[-2] for name in attention.names()}
    return [name for name in family if name == "dense" or family[name] in FAMILIES]


def programs(name: str, T: int) -> dict:
    """For forward and with gradients: what runs it once, and its peak bytes."""
    module, config = attention.build(attention.spec(name, num_heads=HEADS, **FIELDS.get(name, {})))
    mask = masks.causal() if "causal" in module.SUPPORTS else Mask()
    rng = np.random.default_rng(0)
    shapes = attention.shapes(module, config, D=HEADS * WIDTH, B=1, T=T)
    inputs = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}

    def forward(inputs):
        return module.attend(config, **inputs, mask=mask)

    def both(inputs):
        out, pull = jax.vjp(forward, inputs)
        return out, pull(out)

    made = {}
    for direction, function in (("forward", forward), ("both", both)):
        program = jax.jit(function).lower(inputs).compile()
        run = functools.partial(_run, program, inputs)
        run()
        made[direction] = run, cost.peak_bytes(program)
    return made


def _run(program, inputs):
    jax.block_until_ready(program(inputs))


def slope(results: list[dict], name: str, direction: str, key: str) -> float:
    """The exponent of the growth from the second length to the last; the first is too short to tell."""
    first, last = results[1], results[-1]
    ratio = last["variants"][name][direction][key] / first["variants"][name][direction][key]
    return float(np.log(ratio) / np.log(last["T"] / first["T"]))


def claimed(name: str, first: int, last: int) -> float:
    """The same exponent of the FLOPs that the mechanism declares, projections apart."""
    module, config = attention.build(attention.spec(name, num_heads=HEADS, **FIELDS.get(name, {})))
    mask = masks.causal() if "causal" in module.SUPPORTS else Mask()

    def products(T):
        work = module.flops(config, mask, D=HEADS * WIDTH, T=T, S=T).values()
        return sum(part.executed for part in work if not part.projection)

    return float(np.log(products(last) / products(first)) / np.log(last / first))


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    first, last = results[1]["T"], results[-1]["T"]
    heads = ["mechanism", "FLOPs", "forward", "with gradient", "bytes"]
    heads += [f"T={r['T']:,}, ms" for r in results]
    heads += [f"dense / it, T={r['T']:,}" for r in results[1:]]
    rows = []
    for name in results[0]["variants"]:
        own = [r["variants"][name] for r in results]
        rows.append(
            [f"`{name}`", f"{claimed(name, first, last):.2f}"]
            + [f"{slope(results, name, d, 'seconds'):.2f}" for d in ("forward", "both")]
            + [f"{slope(results, name, 'both', 'peak_bytes'):.2f}"]
            + [" / ".join(f"{1e3 * o[d]['seconds']:.1f}" for d in ("forward", "both")) for o in own]
            + [
                " / ".join(f"{o[d]['dense_over_it']['median']:.2f}x" for d in ("forward", "both"))
                for o in own[1:]
            ]
        )
    notes = (
        f"One example, {HEADS} heads of {WIDTH}, float32, causal where that is honoured, default fields"
        f" but {FIELDS}. Exponents of the growth from {first:,} to {last:,} tokens: of the FLOPs declared,"
        f" of seconds forward and with gradients, of peak bytes with gradients. Milliseconds and ratios:"
        f" forward / with gradients; median over rounds in which all take turns."
        f" {results[0]['device']}."
    )
    align = ["left"] + ["right"] * (len(heads) - 1)
    wide = tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{wide}\n\n{notes}\n"


def figure(results: list[dict]) -> Figure:
    """Seconds and peak bytes with gradients, by length, on logarithmic axes."""
    page = Figure(figsize=(10.0, 5.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(page)
    panels = page.subplots(1, 2)
    lengths = [r["T"] for r in results]
    last = results[-1]["variants"]
    order = sorted(last, key=lambda name: -last[name]["both"]["seconds"])
    for panel, key, label in zip(
        panels, ("seconds", "peak_bytes"), ("seconds", "peak bytes"), strict=True
    ):
        for number, name in enumerate(order):
            style = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            values = [r["variants"][name]["both"][key] for r in results]
            wide = 2.5 if name == "dense" else 1.0
            panel.loglog(
                lengths, values, color=style[0], marker=style[1], ms=4, lw=wide, label=name
            )
        panel.set_xlabel("tokens")
        panel.set_title(f"{label}, forward and backward")
        panel.set_xticks(lengths, [f"{T:,}" for T in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside right center", fontsize=8, title="slowest first")
    return page
