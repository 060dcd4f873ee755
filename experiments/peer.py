"""The encoder of `tinyattn.model` in eager PyTorch, for the speed suite to compare with.

It takes our parameters, so that both train the same function from the same point.
"""

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


def device() -> str:
    """Where PyTorch runs: on the kind of device that JAX runs on.

    Raises:
      RuntimeError: That is a GPU, and PyTorch sees none.
    """
    if jax.default_backend() == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError(f"PyTorch {torch.__version__} sees no GPU; install its CUDA build")
    return "cuda"


def wait(out) -> None:
    """Until a GPU has done all that was asked of it; a CPU has already."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Block(nn.Module):
    """One pre-norm layer, as `tinyattn.model.Block` with dense attention."""

    def __init__(self, width: int, num_heads: int, ffn_width: int):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm_ffn = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, ffn_width), nn.Linear(ffn_width, width)
        self.num_heads = num_heads

    def forward(self, x):
        B, T, D = x.shape
        y = self.norm_attention(x)
        heads = (
            layer(y).view(B, T, self.num_heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(B, T, D)
        x = x + self.out(y)
        return x + self.down(F.gelu(self.up(self.norm_ffn(x)), approximate="tanh"))


class Encoder(nn.Module):
    """Embedding of patches, learned positions, blocks, norm, mean, head."""

    def __init__(self, config, length: int, channels: int):
        super().__init__()
        heads = config.attention["num_heads"]
        self.patches = nn.Linear(channels, config.width)
        self.positions = nn.Parameter(torch.zeros(length, config.width))
        self.blocks = nn.ModuleList(
            Block(config.width, heads, config.ffn_width) for _ in range(config.num_layers)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.head = nn.Linear(config.width, config.num_classes)

    def forward(self, x):
        x = self.patches(x) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


def load_params(peer: Encoder, params: dict) -> None:
    """Copies the params of `tinyattn.model.Transformer` into its peer."""

    def copy(layer, leaves):
        weight = leaves["kernel"].T if "kernel" in leaves else leaves["scale"]
        layer.weight.copy_(torch.from_numpy(np.array(weight)))
        layer.bias.copy_(torch.from_numpy(np.array(leaves["bias"])))

    with torch.no_grad():
        copy(peer.patches, params["embedding"]["patches"])
        positions = params["embedding"]["positions"][: len(peer.positions)]
        peer.positions.copy_(torch.from_numpy(np.array(positions)))
        for i, block in enumerate(peer.blocks):
            ours = params[f"block_{i}"]
            for name in ("norm_attention", "norm_ffn"):
                copy(getattr(block, name), ours[name])
            for name in ("query", "key", "value", "out"):
                copy(getattr(block, name), ours["attention"][name])
            for name in ("up", "down"):
                copy(getattr(block, name), ours["ffn"][name])
        copy(peer.norm, params["norm"])
        copy(peer.head, params["head"])


def trainer(peer: Encoder, optim):
    """A function (inputs [B, T, channels], labels [B]) -> loss that makes one step.

    Args:
      peer: The model.
      optim: `tinyattn.optim.Config`, constant AdamW with clipping; matrices alone decay.
    """
    matrices = [p for p in peer.parameters() if p.ndim >= 2]
    others = [p for p in peer.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": optim.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        lr=optim.learning_rate,
        betas=(optim.b1, optim.b2),
        eps=optim.eps,
        fused=True,
    )
    params = [*matrices, *others]

    def step(inputs, labels):
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(peer(inputs), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(params, optim.clip_norm)
        optimizer.step()
        return loss.detach()

    return step
