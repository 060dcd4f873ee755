"""Which leaves are pruned, and the masks that they get; `config` is that of `prune`."""

import re
from typing import Any

import jax
import jax.numpy as jnp

from tinyattn.weights import _fold, _layers, _making, _pruned, _theta, _units

# Of `tinyattn.model`: kernels whose outputs are units', leaves whose first axis is, and what is judged.
LEAVES = {
    "heads": (
        r"/attention/(query|key|value|gate|forget)/kernel$",
        r"/attention/((query|key|value|gate|forget)/bias|sink/logit|out/kernel)$",
        r"/attention/(value|out)/kernel$",
    ),
    "ffn": (
        r"/ffn/(gate|up)/kernel$",
        r"/ffn/((gate|up)/bias|down/kernel)$",
        r"/ffn/(gate|up|down)/kernel$",
    ),
}


def elements(config: Any, rng, theta) -> dict[str, _pruned.Pruned]:
    """Leaves that are pruned each for itself."""
    found = {}
    _matching(config.leaves, theta)
    for path, leaf in _theta.owned("prune", config.leaves, theta).items():
        shape = _theta.value(_weights(path, leaf)).shape
        match config.pattern:
            case "n:m":
                units, pruned = _units.neighbours(path, shape, config.of), config.of - config.keep
            case "blocks":
                units = _units.blocks(path, shape, config.rows, config.columns)
                pruned = round(config.sparsity * units.units)
            case _:
                units = _units.single(shape)
                pruned = round(config.sparsity * units.units)
        found[path] = _pruned.Pruned(leaf, _mask(config, rng, path, leaf, units, pruned), units)
    return found


def whole(config: Any, rng, theta) -> dict[str, _pruned.Pruned]:
    """Leaves of which the same units are pruned: one mask a layer, at the first that is judged."""
    given = (config.outputs, config.inputs, config.judges)
    outputs, inputs, judges = (a or b for a, b in zip(given, LEAVES[config.pattern], strict=True))
    axes = dict.fromkeys(_matching(inputs, theta), 0) | dict.fromkeys(_matching(outputs, theta), 1)
    stored = _theta.leaves(theta)
    within = tuple(f"{path}/" for path in _fold.nodes(theta))
    layers = _layers.Layers(config.layers, axes)
    found = {}
    in_layers = [path for path in axes if layers.of(path) is not None]
    for stack, number in sorted({layers.place(path) for path in in_layers}):
        own = {path: axes[path] for path in in_layers if layers.place(path) == (stack, number)}
        owners = {layers.place(_owner(stored, path)) for path in own}
        if len(owners) > 1:
            numbers = {owner for _, owner in owners}
            raise ValueError(
                f"prune: layer {number} has some of {sorted(own)} from layer {numbers}: whole units go"
                f" from all of them at once, so share all or none of them"
            )
        if owners != {(stack, number)}:
            continue
        judged = [path for path in own if re.search(judges, path)]
        if not judged:
            raise ValueError(f"prune: judges={judges!r} is found in none of {sorted(own)}")
        first = judged[0]
        U = config.units or _theta.value(stored[first]).shape[own[first]]
        pruned = round(config.sparsity * U)
        if pruned == U or (config.sparsity and not pruned):
            raise ValueError(
                f"prune: sparsity={config.sparsity} of {U} units in layer {number} prunes {pruned}:"
                f" at least one must stay and one must go, so give 1/{U} to {U - 1}/{U}, or 0"
            )
        for path, axis in own.items():
            if path.startswith(within):
                raise ValueError(
                    f"prune: {path} is part of what another scheme made, and {config.pattern!r} is"
                    f" removed from whole params: prune first, and let the other have 'weight'"
                )
            leaf = _weights(path, stored[path])
            units = _units.slices(path, _theta.value(leaf).shape, axis, U)
            mask = _theta.Alias(f"{first}/mask")
            if path == first:
                mask = _mask(config, rng, path, leaf, units, pruned)
            found[path] = _pruned.Pruned(leaf, mask, units, axis, path in judged)
    if not found:
        raise ValueError(
            f"prune: no layer as {config.layers!r} finds it has leaves of its own that {outputs!r} and"
            f" {inputs!r} pick"
        )
    return found


def _mask(config: Any, rng, path: str, leaf, units: _units.Units, pruned: int) -> _pruned.Mask:
    shape = units.groups, units.units
    scores = key = None
    if config.score == "movement":
        scores = jnp.zeros(shape, _theta.value(leaf).dtype)
    if config.score == "random":
        key = _making.rng_of(rng, path)
        if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
            key = jax.random.key_data(key)
        key = _theta.Scratch(key)
    return _pruned.Mask(_theta.Fixed(jnp.ones(shape, bool)), scores, key, pruned, config)


def _matching(pattern: str, theta) -> list[str]:
    """Paths of leaves; what another scheme made has to be picked by its own leaves."""
    paths = list(_theta.leaves(theta))
    for path, node in _fold.nodes(theta).items():
        inner = [own for own in paths if own.startswith(f"{path}/")]
        if inner and re.search(pattern, path) and not any(re.search(pattern, own) for own in inner):
            raise ValueError(
                f"prune: {pattern!r} picks {path}, of which another scheme made"
                f" {type(node).__name__}: prune one of its leaves, such as {inner[0]}, or prune first"
                f" and let the other scheme have {path}/weight"
            )
    return _theta.matching(pattern, theta)


def _weights(path: str, leaf):
    """The leaf, if zeros in it mean anything."""
    if isinstance(leaf, _theta.Seeded):
        raise ValueError(
            f"prune: {path} is seeded: it is made again and never stored, so zeros save nothing:"
            f" exclude it"
        )
    dtype = _theta.value(leaf).dtype
    if isinstance(leaf, _theta.Scratch) or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"prune: {path} holds {dtype} that say what weights are and are none themselves: exclude"
            f" it, or prune before the scheme that made it"
        )
    return leaf


def _owner(stored, path: str) -> str:
    """The leaf behind aliases."""
    while isinstance(stored.get(path), _theta.Alias):
        path = stored[path].owner
    return path
