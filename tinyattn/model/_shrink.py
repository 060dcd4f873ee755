"""The config of what is left of a model when whole heads and FFN columns are pruned."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from tinyattn import attention
from tinyattn.model._config import Config
from tinyattn.model._layout import layout


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
        _fewer_heads(config, section, params[name]["attention"], small[name]["attention"])
        for k, section in enumerate(sections)
        for name in [f"block_{layout(config).index(str(k))}"]
    )
    if fewer != sections:
        changes |= {"attention": fewer[0], "also": fewer[1:]}
    if config.decoder_layers:
        before, after = (tree["decoder"]["block_0"] for tree in (params, small))
        for field, name in (
            ("decoder_attention", "attention"),
            ("cross_attention", "cross_attention"),
        ):
            section = getattr(config, field)
            left = _fewer_heads(config, section, before[name], after[name])
            if left != section:
                changes[field] = left
    return dataclasses.replace(config, **changes) if changes else config


def _fewer_heads(config: Config, section: Mapping[str, Any], whole: Any, small: Any):
    """The section of a variant as the inputs that are left of its output projection say."""
    before, after = (tree.get("out", {}).get("kernel") for tree in (whole, small))
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
