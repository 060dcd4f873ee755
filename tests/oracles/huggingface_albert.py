"""The reference from transformers for layers that share their weights, in groups and in inner groups."""

import math

import numpy as np
import torch
from cases import golden, normal
from heads import B, eager
from torch.func import functional_call
from transformers.models.albert import modeling_albert as albert

LAYERS, HEADS, D, F, T = 4, 2, 4, 6, 5
# Their modules of a layer, and the sizes of each kernel.
KERNELS = {
    "attention.query": (D, D),
    "attention.key": (D, D),
    "attention.value": (D, D),
    "attention.dense": (D, D),
    "ffn": (D, F),
    "ffn_output": (F, D),
}
NORMS = ("attention.LayerNorm", "full_layer_layer_norm")


@golden("transformers.models.albert.modeling_albert.AlbertModel", folder="weights/")
def albert_sharing():
    """Weights of four layers, each as one row, of which a model with fewer takes the first.

    All inner layers of a group run in each of its layers: `used` says whose weights each of them had, by
    hooks on the modules that ran, numbered through the groups.
    """
    shapes = {}
    for name, shape in KERNELS.items():
        shapes |= {f"{name}.kernel": shape, f"{name}.bias": shape[1:]}
    for name in NORMS:
        shapes |= {f"{name}.scale": (D,), f"{name}.bias": (D,)}
    lengths = [math.prod(shape) for shape in shapes.values()]
    drawn = normal(120, weights=(4, sum(lengths)), x=(B, T, D), dout=(B, T, D))
    # So that tokens stay apart through the layers: gains near 1, small biases.
    spread = {"kernel": 0.5, "bias": 0.125, "scale": 0.25}
    sizes = np.repeat([spread[name.rpartition(".")[-1]] for name in shapes], lengths)
    centre = np.repeat([name.endswith("scale") for name in shapes], lengths)
    drawn["weights"] = np.float64(np.float32(centre + sizes * drawn["weights"]))
    tokens = torch.zeros(B, T, dtype=torch.long)

    def run(groups, inner):
        config = albert.AlbertConfig(
            vocab_size=11,
            embedding_size=6,
            hidden_size=D,
            num_hidden_layers=LAYERS,
            num_hidden_groups=groups,
            inner_group_num=inner,
            num_attention_heads=HEADS,
            intermediate_size=F,
            max_position_embeddings=T,
            hidden_act="gelu",
        )
        model = albert.AlbertModel(eager(config), add_pooling_layer=False).eval()
        stacks = model.encoder.albert_layer_groups
        layers = [layer for group in stacks for layer in group.albert_layers]
        used = []
        for i, layer in enumerate(layers):
            layer.register_forward_hook(lambda *_, i=i: used.append(i))
        # What enters the layers is ours, whatever the tokens are.
        mapped = model.encoder.embedding_hidden_mapping_in
        mapped.register_forward_hook(lambda *_: torch.tensor(drawn["x"]))
        weights = torch.tensor(drawn["weights"][: len(layers)], requires_grad=True)
        given = {}
        for i, row in enumerate(weights):
            for (name, shape), x in zip(shapes.items(), row.split(lengths), strict=True):
                module, _, leaf = name.rpartition(".")
                theirs = f"{module}.{'bias' if leaf == 'bias' else 'weight'}"
                path = (
                    f"encoder.albert_layer_groups.{i // inner}.albert_layers.{i % inner}.{theirs}"
                )
                given[path] = x.view(shape).T if leaf == "kernel" else x
        out = functional_call(model, given, (tokens,)).last_hidden_state
        out.backward(torch.tensor(drawn["dout"]))
        settings = {"layers": LAYERS, "groups": groups, "inner": inner, "heads": HEADS}
        settings |= {"used": used, "parameters": sum(p.numel() for p in stacks.parameters())}
        settings["epsilon"] = config.layer_norm_eps
        return settings, {"out": out.detach().numpy(), "grad_weights": weights.grad.numpy()}

    cases = [(1, 1), (2, 1), (1, 2), (2, 2)]
    found = {f"{groups} groups, {inner} inner": run(groups, inner) for groups, inner in cases}
    return {"all": ({"shapes": shapes}, drawn), **found}
