"""The length suite: sparse and linear mechanisms in turn with our own dense core, time and peak memory."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tabulate import tabulate

from experiments.pareto import COLOURS, DPI, MARKERS
from experiments.timing import Sample, Side, rounds, side
from tinyattn import attention, cost, masks
from tinyattn.masks import Mask

SECONDS = 4.0  # of sampling for each length and direction
LENGTHS = (256, 2048, 8192, 16384)
# Tokens of a program of the dense core that takes turns at every length: a machine is not equally fast all
# the time, and growth is read off seconds as multiples of its.
YARDSTICK = 2048
HEADS, WIDTH = 4, 32
# Fields other than the defaults, where the mechanism is measured at a size that is asked for.
FIELDS = {"window": {"window": 256}, "linformer": {"length": max(LENGTHS)}}
FAMILIES = ("sparse", "lowrank", "recurrent")  # beside `dense`, which all are compared with
DIRECTIONS = ("forward", "both")
NONE = "—"


def shapes() -> tuple[int, ...]:
    """Lengths (T)."""
    return LENGTHS


def measure(T: int) -> dict:
    """Seconds and peak bytes of each mechanism at T tokens, in float32, causal if it can be.

    Each device has an example, as in a training step: threads that share the small products of one would
    mostly wait for each other. One that fails, as for want of memory, loses its cell.
    """
    result = {"suite": "length", "T": T, "N": HEADS, "H": WIDTH, "variants": {}, "yardstick": {}}
    cells = result["variants"]
    for direction in DIRECTIONS:
        sides = {}
        for name in names():
            cell = cells.setdefault(name, {}).setdefault(direction, {})
            try:
                sides[name], cell["peak_bytes"] = program(name, T, direction == "both")
            except Exception as error:
                cell["failed"] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                print(f"{name} at T={T}, {direction}: {cell['failed']}", file=sys.stderr)
        yardstick = program("dense", YARDSTICK, direction == "both")[0]
        turns = [*sides.values(), yardstick]
        seconds = rounds([s.run for s in turns], SECONDS) / np.array([[s.calls] for s in turns])
        result["yardstick"][direction] = float(np.median(seconds[-1]))
        for name, own in zip(sides, seconds, strict=False):
            cells[name][direction]["seconds"] = float(np.median(own))
            dense = seconds[list(sides).index("dense")] if "dense" in sides else np.nan
            cells[name][direction]["dense_over_it"] = Sample.of(dense / own)._asdict()
    return result


def names() -> list[str]:
    """The dense core and all that claims to grow slower."""
    family = {name: attention.load(name).__name__.split(".")[-2] for name in attention.names()}
    return [name for name in family if name == "dense" or family[name] in FAMILIES]


def program(name: str, T: int, both: bool) -> tuple[Side, int | None]:
    """Forward alone or with gradients, an example a device: what runs it, and its peak bytes of one."""
    module, config = attention.build(attention.spec(name, num_heads=HEADS, **FIELDS.get(name, {})))
    mask = masks.causal() if "causal" in module.SUPPORTS else Mask()
    rng = np.random.default_rng(0)
    B = jax.device_count()
    one, shapes = (attention.shapes(module, config, D=HEADS * WIDTH, B=b, T=T) for b in (1, B))
    inputs = {n: jnp.asarray(rng.standard_normal(s), jnp.float32) for n, s in shapes.items()}
    mesh = jax.make_mesh((B,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    # Some take parameters too, which all examples have.
    given = {n: P() if s == one[n] else P("data") for n, s in shapes.items()}
    inputs = {n: jax.device_put(x, NamedSharding(mesh, given[n])) for n, x in inputs.items()}

    def forward(inputs):
        return module.attend(config, **inputs, mask=mask)

    def backward(inputs):
        out, pull = jax.vjp(forward, inputs)
        return out, pull(out)

    function = backward if both else forward
    split = jax.shard_map(
        function, mesh=mesh, in_specs=(given,), out_specs=P("data"), check_vma=False
    )
    compiled = jax.jit(split).lower(inputs).compile()
    return side(functools.partial(compiled, inputs)), cost.peak_bytes(compiled)


def slope(results: list[dict], name: str, direction: str, key: str) -> float:
    """The exponent of the growth from the second length to the last; the first is too short to tell."""
    first, last = _ends(results)
    values = (_value(r, name, direction, key) for r in (first, last))
    return _exponent(*values, first["T"], last["T"])


def _value(result: dict, name: str, direction: str, key: str) -> float:
    """Peak bytes, or seconds as a multiple of the yardstick's; NaN where it was not measured."""
    value = result["variants"][name][direction].get(key, np.nan)
    return value / result["yardstick"][direction] if key == "seconds" else value


def _ends(results: list[dict]) -> tuple[dict, dict]:
    return results[min(1, len(results) - 1)], results[-1]


def _exponent(before, after, first: int, last: int) -> float:
    """NaN of one length, or where something was not measured."""
    return float(np.log(after / before) / np.log(last / first)) if last > first else np.nan


def claimed(name: str, first: int, last: int) -> float:
    """The same exponent of the FLOPs that the mechanism declares, projections apart."""
    module, config = attention.build(attention.spec(name, num_heads=HEADS, **FIELDS.get(name, {})))
    mask = masks.causal() if "causal" in module.SUPPORTS else Mask()

    def products(T):
        work = module.flops(config, mask, D=HEADS * WIDTH, T=T, S=T).values()
        return sum(part.executed for part in work if not part.projection)

    return _exponent(products(first), products(last), first, last)


def table(results: list[dict]) -> str:
    """The results as Markdown."""
    first, last = (r["T"] for r in _ends(results))
    heads = ["mechanism", "FLOPs", "forward", "with gradient", "bytes"]
    heads += [f"T={r['T']:,}, ms" for r in results]
    heads += [f"dense / it, T={r['T']:,}" for r in results[1:]]
    rows, reasons = [], []
    for name in results[0]["variants"]:
        own = [r["variants"][name] for r in results]
        growth = [
            claimed(name, first, last),
            *(slope(results, name, direction, "seconds") for direction in DIRECTIONS),
            slope(results, name, "both", "peak_bytes"),
        ]
        rows.append([f"`{name}`", *(_text(x) for x in growth)])
        rows[-1] += [_pair(o, lambda c: 1e3 * c["seconds"], "{:.1f}") for o in own]
        rows[-1] += [_pair(o, lambda c: c["dense_over_it"]["median"], "{:.2f}x") for o in own[1:]]
        reasons += [
            f"- `{name}` at T={r['T']:,}, {direction}: {r['variants'][name][direction]['failed']}"
            for r in results
            for direction in DIRECTIONS
            if "failed" in r["variants"][name][direction]
        ]
    notes = (
        f"One example a core, {HEADS} heads of {WIDTH}, float32, causal where that is honoured, default"
        f" fields but {FIELDS}. Exponents of the growth from {first:,} to {last:,} tokens: of the FLOPs"
        f" declared; of seconds forward and with gradients, as multiples of those of `dense` at"
        f" {YARDSTICK:,} tokens, which took turns at both; of peak bytes with gradients. Milliseconds"
        f" and ratios: forward / with gradients; median over rounds in which all take turns."
        f" {results[0]['device']}."
    )
    if reasons:
        notes += "\n\nNot measured:\n\n" + "\n".join(reasons)
    align = ["left"] + ["right"] * (len(heads) - 1)
    wide = tabulate(rows, heads, tablefmt="pipe", colalign=align, disable_numparse=True)
    return f"{wide}\n\n{notes}\n"


def _text(value: float, form: str = "{:.2f}") -> str:
    return NONE if np.isnan(value) else form.format(value)


def _pair(cells: dict, value, form: str) -> str:
    """Of both directions; what was not measured is a dash."""
    own = [cells[direction] for direction in DIRECTIONS]
    return " / ".join(_text(np.nan if "failed" in c else value(c), form) for c in own)


def figure(results: list[dict]) -> Figure:
    """Time and peak bytes with gradients, by length, on logarithmic axes."""
    page = Figure(figsize=(10.0, 5.5), dpi=DPI, layout="constrained")
    FigureCanvasAgg(page)
    panels = page.subplots(1, 2)
    lengths = [r["T"] for r in results]
    last = results[-1]["variants"]
    order = sorted(last, key=lambda name: -last[name]["both"].get("seconds", np.inf))
    titles = {"seconds": f"time over dense's at {YARDSTICK:,} tokens", "peak_bytes": "peak bytes"}
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for number, name in enumerate(order):
            style = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            values = [_value(r, name, "both", key) for r in results]
            wide = 2.5 if name == "dense" else 1.0
            panel.loglog(
                lengths, values, color=style[0], marker=style[1], ms=4, lw=wide, label=name
            )
        panel.set_xlabel("tokens")
        panel.set_title(f"{title}, forward and backward", fontsize=11)
        panel.set_xticks(lengths, [f"{T:,}" for T in lengths])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside right center", fontsize=8, title="slowest first")
    return page
