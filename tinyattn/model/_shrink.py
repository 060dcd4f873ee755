"""The config of what is left of a model when whole heads and FFN columns are pruned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinyattn import attention
from tinyattn.model._config import Config, layout


def shrink(config: Config, params: Any, small: Any) -> Config:
    """The config of a model without some of the heads and FFN columns of this one.

    Args:
      config: Of the model as it is.
      params: Its params, or their shapes.
      small: The same without some heads or columns, equally many in each layer.

    Raises:
      ValueError: What is left are no whole groups of a key/value head and its queries.
    """
    changes: dict[str, Any] = {}
    columns = small["block_0"]["ffn"]["up"]["kernel"].shape[1]
    if columns != config.ffn_width:
        changes["ffn_width"] = columns
    sections = (config.attention, *config.also)
    fewer = tuple(
        _fewer_heads(config, section, params[name], small[name])
        for k, section in enumerate(sections)
        for name in [f"block_{layout(config).index(str(k))}"]
    )
    if fewer != sections:
        changes |= {"attention": fewer[0], "also": fewer[1:]}
    return dataclasses.replace(config, **changes) if changes else config


def _fewer_heads(config: Config, section: Mapping[str, Any], block: Any, left: Any):
    """The section of a variant as the inputs that are left of a layer's output projection say."""
    before, after = (tree["attention"].get("out", {}).get("kernel") for tree in (block, left))
    if before is None or before.shape == after.shape:
        return section
    _, fields = attention.build(section)
    rows, of = after.shape[0], before.shape[0]
    if fields.kv_heads * rows % of:
        raise ValueError(
            f"{rows} of {of} inputs are left of attention's output projection, which is no whole"
            f" number of key/value heads, each with its queries: prune in units={fields.kv_heads}"
        )
    heads = {"num_heads": fields.num_heads * rows // of, "head_dim": fields.width(config.width)}
    if fields.num_kv_heads:
        heads["num_kv_heads"] = fields.kv_heads * rows // of
    return {**section, **heads}
