"""Configs: dotted keys, checked overrides, a digest that names a run."""

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import ml_collections

from tinyattn import registry


def leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key to value, as the command line writes them.

    >>> leaves({"model": {"width": 48}, "weights": ({"name": "share"},)})
    {'model.width': 48, 'weights[0].name': 'share'}
    """
    if isinstance(config, Mapping | ml_collections.ConfigDict):
        dot = "." if prefix else ""
        items = [(f"{prefix}{dot}{name}", value) for name, value in config.items()]
    elif isinstance(config, tuple | list) and any(isinstance(x, Mapping) for x in config):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(config)]
    else:
        return {prefix: config}
    return {key: leaf for name, value in items for key, leaf in leaves(value, name).items()}


def plain(config: Any) -> Any:
    """The config as dicts, lists and numbers, as JSON keeps it."""
    if isinstance(config, Mapping | ml_collections.ConfigDict):
        return {name: plain(value) for name, value in sorted(config.items())}
    if isinstance(config, tuple | list):
        return [plain(value) for value in config]
    return config


def digest(config: Any) -> str:
    """Names a run: the hash of its resolved config (16 hexadecimal digits)."""
    text = json.dumps(plain(config), sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_key(config: Any, key: str) -> Any:
    """The value at a dotted key, which the config must have.

    Raises:
      ValueError: Naming the nearest keys.
    """
    here = config
    for part in re.sub(r"\[(\d+)\]", r".\1", key).split("."):
        if isinstance(here, tuple | list) and part.isdigit() and int(part) < len(here):
            here = here[int(part)]
        elif isinstance(here, Mapping | ml_collections.ConfigDict) and part in here:
            here = here[part]
        else:
            raise ValueError(f"unknown key {key!r}; {registry.nearest(key, leaves(config))}")
    return here


def override(base: ml_collections.ConfigDict, changes: Mapping[str, Any]):
    """A copy of the config with changes, and nothing stale in it.

    A value is a leaf of the same type as the base's, or a `registry.Spec` that replaces a whole
    section (keeping only what both parts inherit), or a tuple of those for a list of sections.

    Raises:
      ValueError: Unknown key, or a value of another type.
    """
    # Only a deep copy keeps references between fields alive and leaves the base alone.
    config = copy.deepcopy(base)
    with config.unlocked():
        for key, value in changes.items():
            check_key(config, key)
            parent, name = _parent(config, key)
            fitting = _fitting(key, parent[name], value)
            if isinstance(value, registry.Spec):
                _refill(parent[name], fitting)
            else:
                parent[name] = fitting
    return config


def _parent(config, key: str):
    *path, last = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    for part in path:
        config = config[int(part)] if isinstance(config, tuple | list) else config[part]
    return config, last


def _refill(section, fields: Mapping[str, Any]) -> None:
    """Gives a section other fields, in place: what it keeps stays tied to what it refers to."""
    for name in list(section):
        if name not in fields or type(section[name]) is not type(fields[name]):
            del section[name]
    for name, value in fields.items():
        if name not in section or section[name] != value:
            section[name] = value


def _fitting(key: str, old: Any, new: Any) -> Any:
    if isinstance(new, registry.Spec):
        if not isinstance(old, Mapping | ml_collections.ConfigDict) or "name" not in old:
            raise ValueError(f"{key} is not a section that a spec could replace; it is {old!r}")
        return dict(registry.replace(new.package, old, new))
    if isinstance(new, tuple | list) and isinstance(old, tuple | list):
        return tuple(dict(x) if isinstance(x, registry.Spec) else x for x in new)
    if isinstance(old, Mapping | ml_collections.ConfigDict):
        raise ValueError(f"{key} is a section: change its leaves one by one, or give a spec(...)")
    if old is None or type(new) is type(old):
        return new
    if isinstance(old, float) and type(new) is int:
        return float(new)
    raise ValueError(
        f"{key} = {new!r} is a {type(new).__name__}; the base has the {type(old).__name__} {old!r}"
    )


def parse_arg(arg: str | None, **defaults: str | bool) -> ml_collections.ConfigDict:
    """Reads what stands after the colon of `--config=file.py:attention=window,smoke`.

    These are the choices that decide which keys a config has, or that fan out into several.

    Args:
      arg: Comma-separated `name=value`, or `name` alone for a switch.
      **defaults: The choices that this file offers; a bool is a switch.

    Raises:
      ValueError: A choice that the file does not offer.
    """
    chosen = ml_collections.ConfigDict(defaults)
    for part in filter(None, (arg or "").split(",")):
        name, equals, value = part.partition("=")
        if name not in defaults:
            raise ValueError(f"config argument {name!r}; {registry.nearest(name, defaults)}")
        switch = isinstance(defaults[name], bool)
        if switch == bool(equals):
            raise ValueError(
                f"config argument {part!r}: write {name if switch else name + '=VALUE'}"
            )
        chosen[name] = True if switch else value
    return chosen
