"""Which variant a layer has, and which layer makes the heads that it takes."""

from types import ModuleType
from typing import Any

from tinyattn import attention

# What a layer takes from one before it instead of projecting it.
REUSE = {"none": (), "key_value": ("key", "value"), "query_key": ("query", "key")}


def layout(config: Any) -> str:
    """The digit of every layer: which section its variant comes from."""
    digits = config.layout or "0"
    return (digits * config.num_layers)[: config.num_layers]


def mixers(config: Any) -> list[tuple[ModuleType, Any]]:
    """The variant of every layer: its module and its fields."""
    made = [attention.build(section) for section in (config.attention, *config.also)]
    return [made[int(digit)] for digit in layout(config)]


def maker(config: Any, layer: int) -> int:
    """The layer that makes what a layer shares: itself, or one before it."""
    place = layer - config.reuse_from
    alone = config.reuse == "none" or place < 0
    return layer if alone else layer - place % config.reuse_every
