"""How a theta is put together from tensors, in JSON's terms: see `_file`."""

import dataclasses
import importlib
import json
import math
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from tinyattn import registry
from tinyattn.weights._theta import Alias, Node, Scratch, Seeded, is_kind, is_node, value


def describe(x: Any, path: str = "") -> Any:
    """How what is at a path is put together, in JSON's terms."""

    def inner(name, child):
        return describe(child, f"{path}/{name}" if path else str(name))

    if x is None:
        return None
    if isinstance(x, dict):
        return {"dict": {name: inner(name, child) for name, child in x.items()}}
    if isinstance(x, tuple | list):
        return {type(x).__name__: [inner(i, child) for i, child in enumerate(x)]}
    if not is_node(x):
        return {"array": _signature(x)}
    fields = {f.name: (f, getattr(x, f.name)) for f in dataclasses.fields(x)}
    static = {name: each for name, (f, each) in fields.items() if f.metadata.get("static")}
    try:
        kept = _tuples(json.loads(json.dumps(static)))
    except TypeError:
        kept = None
    if kept != static:
        raise ValueError(f"{path}: {type(x).__name__} has static fields beyond JSON: {static}")
    made = {"node": type(x).__name__, "static": static}
    if isinstance(x, Alias | Seeded):
        return made
    if is_kind(x):
        return made | {"array": _signature(value(x))}
    return made | {
        "fields": {n: inner(n, each) for n, (_, each) in fields.items() if n not in static}
    }


def _signature(array) -> list:
    return [str(array.dtype), list(array.shape)]


def _tuples(x):
    """JSON's lists as tuples, for the static fields of nodes are hashable."""
    if isinstance(x, dict):
        return {name: _tuples(each) for name, each in x.items()}
    return tuple(map(_tuples, x)) if isinstance(x, list) else x


def classes(modules: Iterable[ModuleType]) -> dict[str, type]:
    """Name to class of the nodes of this package and of these modules."""
    package = importlib.import_module(__package__)
    own = pkgutil.walk_packages(package.__path__, f"{__package__}.")
    found: dict[str, type] = {}
    for module in [*(importlib.import_module(info.name) for info in own), *modules]:
        for name, known in vars(module).items():
            if not isinstance(known, type) or not issubclass(known, Node):
                continue
            if found.setdefault(name, known) is not known:
                raise ValueError(f"two nodes are called {name!r}, {found[name]} and {known}")
    return found


class Reader(NamedTuple):
    """Follows a recipe; each tensor is taken once."""

    tensors: dict[str, np.ndarray]
    classes: dict[str, type]

    def tree(self, recipe: Any, path: str = "") -> Any:
        def inner(name, child):
            return self.tree(child, f"{path}/{name}" if path else str(name))

        if recipe is None:
            return None
        if "dict" in recipe:
            return {name: inner(name, child) for name, child in recipe["dict"].items()}
        for kind in (tuple, list):
            if kind.__name__ in recipe:
                return kind(inner(i, child) for i, child in enumerate(recipe[kind.__name__]))
        if "node" not in recipe:
            return self.array(recipe["array"], path)
        name, static = recipe["node"], _tuples(recipe["static"])
        if name not in self.classes:
            raise ValueError(
                f"{path} is a node {name!r}; {registry.nearest(name, self.classes)}; one of a fork is"
                f" found in the modules that are given beside the path"
            )
        node = self.classes[name]
        if issubclass(node, Seeded):
            return self.seeded(node, static, path)
        if issubclass(node, Scratch):
            dtype, shape = recipe["array"]
            return node(np.zeros(shape, dtype), **static)
        if "array" in recipe:
            return node(self.array(recipe["array"], path), **static)
        fields = {field: inner(field, each) for field, each in recipe.get("fields", {}).items()}
        return node(**fields, **static)

    def take(self, path: str) -> np.ndarray:
        if path not in self.tensors:
            raise ValueError(f"it lacks the tensor {path!r}: load another copy")
        return self.tensors.pop(path)

    def array(self, signature, path: str) -> np.ndarray:
        dtype, shape = signature
        array = self.take(path)
        if dtype == "bool":
            return np.unpackbits(array, count=math.prod(shape)).astype(bool).reshape(shape)
        if _signature(array) != signature:
            raise ValueError(f"{path} is {_signature(array)}, but the recipe says {signature}")
        return array

    def seeded(self, node: type[Seeded], static, path: str) -> Seeded:
        words = self.take(path)
        scale = words[2:3].view(np.float32)[0]
        try:
            return node(None, words[:2], scale, words[3], **static).regenerated()
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
