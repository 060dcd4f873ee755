"""A golden file: cases of one mechanism, each with inputs, settings, output and gradients."""

import functools
import json
import platform
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"
MAKERS = {}


def golden(source: str, precision: str = "float64", folder: str = ""):
    """Registers a function that returns {case: settings and arrays}; its name is the file's.

    Args:
      source: What computes the numbers, as a dotted name.
      precision: The least precise type within it.
      folder: Where the file goes within `golden/`, with the slash that ends it.
    """

    def register(maker):
        path = f"{folder}{maker.__name__}"
        MAKERS[path] = functools.partial(_pack, maker, source, precision)
        return maker

    return register


def _pack(maker, source, precision) -> dict[str, np.ndarray]:
    found = maker()
    packages = ("torch", "transformers", "peft", "fla-core", "triton", "numpy")
    installed = {dist.name.lower() for dist in metadata.distributions()}
    about = {
        "source": source,
        "precision": precision,
        "versions": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in packages if name in installed},
        },
        "cases": {case: settings for case, (settings, _) in found.items()},
    }
    arrays = {f"{case}/{name}": x for case, (_, own) in found.items() for name, x in own.items()}
    return {"about": np.array(json.dumps(about, indent=1)), **arrays}


def normal(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Normal numbers as float64 that float32 holds exactly, so that no input is rounded."""
    rng = np.random.default_rng(seed)
    draws = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return {name: x.astype(np.float32).astype(np.float64) for name, x in draws.items()}


def ask(function, inputs, *, settings, valid=None, **constants):
    """A case: function(**inputs, **constants) and the gradients of all inputs under random weights.

    Args:
      function: Takes tensors by name, returns one.
      inputs: Arrays that have a gradient.
      settings: What a test has to know besides.
      valid: bool [B, T], the queries whose output means something; None is all.
      **constants: Arrays without a gradient, which are kept in the file as well.
    """
    leaves = {name: torch.tensor(x, requires_grad=True) for name, x in inputs.items()}
    fixed = {name: torch.tensor(x) for name, x in constants.items()}
    out = function(**leaves, **fixed)
    dout = normal(99, dout=tuple(out.shape))["dout"]
    arrays = {**inputs, **constants}
    if valid is not None:
        dout *= valid.reshape(*valid.shape, *[1] * (dout.ndim - valid.ndim))
        arrays["valid"] = valid
    out.backward(torch.tensor(dout))
    arrays |= {"out": out.detach().numpy(), "dout": dout}
    arrays |= {f"grad_{name}": x.grad.numpy() for name, x in leaves.items()}
    return settings, arrays


def clear(query, key, weight, count: int) -> None:
    """Refuses draws whose choice of keys hangs on a tie: the index of many pairs is 0.

    Args:
      query: [B, T, heads, width].
      key: [B, T, 1, width].
      weight: [B, T, heads].
      count: Keys that are chosen.
    """
    met = np.maximum(np.einsum("btjd,bsed->btjs", query, key), 0)
    index = np.einsum("btj,btjs->bts", weight, met)
    for t in range(count, index.shape[1]):
        last, other = -np.sort(-index[:, t, : t + 1], axis=-1)[:, count - 1 : count + 1].T
        assert (last - other > 1e-3).all(), "a tie, or nearly: draw by another seed"


def write(arrays, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def compare(arrays, path: Path) -> float:
    """The largest difference of what was made now from a file, relative to the array's largest number.

    Raises:
      SystemExit: They differ in more than rounding.
    """
    about, worst = json.loads(str(arrays["about"])), 0.0
    limit = 1e-12 if about["precision"] == "float64" else 1e-6
    with np.load(path) as kept:
        if (names := set(kept.files)) != set(arrays):
            raise SystemExit(f"{path.name} holds other arrays: {sorted(names ^ set(arrays))}")
        was = json.loads(str(kept["about"]))
        for field in ("source", "precision", "cases"):
            if was[field] != about[field]:
                raise SystemExit(f"{path.name} has another {field}: {was[field]}")
        for name in names - {"about"}:
            old, new = kept[name], arrays[name]
            if old.shape != new.shape or old.dtype != new.dtype:
                raise SystemExit(f"{path.name}: {name} is {new.dtype}{new.shape} now")
            old, new = old.astype(float), new.astype(float)
            off = np.abs(old - new).max() / (np.abs(old).max() or 1.0)
            if not off <= limit:
                raise SystemExit(f"{path.name}: {name} differs by {off:.1e}, more than {limit:.0e}")
            worst = max(worst, off)
    return worst
