"""References from PEFT for weight schemes: one linear layer each, all arrays in our orientation.

PyTorch keeps a kernel as [d_out, d_in], we as [d_in, d_out]; so `a` [d_in, r] and `b` [r, d_out] are the
transposes of theirs. Nothing is at its initial value, where half of the gradients would be 0.
"""

import collections
import contextlib
import functools

import numpy as np
import peft
import torch
from cases import ask, golden, normal
from torch import nn
from torch.func import functional_call
from transformers import RobertaConfig, RobertaModel

IN, OUT, RANK, ALPHA = 7, 5, 3, 6
weights = functools.partial(golden, folder="weights/")


def turned(x):
    """Their orientation of our array, or ours of theirs."""
    return x.mT if x.ndim > 1 else x


@contextlib.contextmanager
def single():
    """Makes new tensors float32, as code that rounds to it on the way expects."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float64)


def adapt(config, **kernels):
    """A model of linear layers with these kernels [d_in, d_out], as PEFT wraps it."""
    layers = {name: nn.Linear(*w.shape, bias=False) for name, w in kernels.items()}
    for name, w in kernels.items():
        layers[name].weight.data = torch.tensor(w.T)
    config.target_modules = set(layers)
    return peft.get_peft_model(nn.Sequential(collections.OrderedDict(layers)), config)


def case(model, factors, *, settings, name="layer", **constants):
    """Output and gradients of one layer, and the kernel that it merges into.

    Args:
      model: From `adapt`.
      factors: {their parameter: (our name, array in our orientation)}, all that the layer trains.
      settings: What a test has to know besides.
      name: Which layer.
      **constants: Further arrays to keep.
    """
    layer = model.base_model.model.get_submodule(name)
    own = {path: x for path, x in layer.named_parameters() if x.requires_grad}
    assert set(own) == set(factors), f"it trains {sorted(own)}"
    w0 = layer.base_layer.weight.detach().numpy().T.copy()

    def call(x, **drawn):
        given = {path: turned(drawn[ours]) for path, (ours, _) in factors.items()}
        return functional_call(layer, given, (x,))

    inputs = normal(90, x=(4, layer.in_features)) | dict(factors.values())
    settings = settings | {"trainable": sum(x.numel() for x in own.values())}
    settings, arrays = ask(call, inputs, settings=settings)
    for path, (_, x) in factors.items():
        own[path].data = torch.tensor(turned(x))
    layer.merge()
    merged = layer.base_layer.weight.detach().numpy().T
    return settings, arrays | {"w0": w0, "w": merged, **constants}


def draw(seed, **shapes):
    """The factors' numbers, and a base `w0` of the usual shape."""
    return normal(seed, w0=(IN, OUT), **shapes)


@weights("peft.tuners.lora.layer.Linear")
def lora():
    x = draw(101, a=(IN, RANK), b=(RANK, OUT))
    model = adapt(peft.LoraConfig(r=RANK, lora_alpha=ALPHA), layer=x["w0"])
    factors = {
        "lora_A.default.weight": ("a", x["a"]),
        "lora_B.default.weight": ("b", x["b"]),
    }
    return {"linear": case(model, factors, settings={"scale": ALPHA / RANK})}


@weights("peft.tuners.lora.dora.DoraLinearLayer")
def dora():
    """The norm of a column, over its inputs, is a constant in the gradient (the paper's section 4.3)."""
    x = draw(102, a=(IN, RANK), b=(RANK, OUT), magnitude=(OUT,))
    model = adapt(peft.LoraConfig(r=RANK, lora_alpha=ALPHA, use_dora=True), layer=x["w0"])
    factors = {
        "lora_A.default.weight": ("a", x["a"]),
        "lora_B.default.weight": ("b", x["b"]),
        "lora_magnitude_vector.default.weight": ("magnitude", x["magnitude"]),
    }
    return {"linear": case(model, factors, settings={"scale": ALPHA / RANK})}


@weights("peft.tuners.hira.layer.Linear")
def hira():
    """It has no scale; its `get_delta_weight` is ab alone, not W0 ⊙ ab."""
    x = draw(103, a=(IN, RANK), b=(RANK, OUT))
    model = adapt(peft.HiraConfig(r=RANK), layer=x["w0"])
    factors = {"hira_A.default": ("a", x["a"]), "hira_B.default": ("b", x["b"])}
    return {"linear": case(model, factors, settings={})}


@weights("peft.tuners.loha.layer.Linear")
def loha():
    """Their `_a` is the side of the outputs and their `_b` that of the inputs, unlike LoRA's."""
    x = draw(104, a1=(IN, RANK), b1=(RANK, OUT), a2=(IN, RANK), b2=(RANK, OUT))
    model = adapt(peft.LoHaConfig(r=RANK, alpha=ALPHA), layer=x["w0"])
    factors = {
        "hada_w1_a.default": ("b1", x["b1"]),
        "hada_w1_b.default": ("a1", x["a1"]),
        "hada_w2_a.default": ("b2", x["b2"]),
        "hada_w2_b.default": ("a2", x["a2"]),
    }
    return {"linear": case(model, factors, settings={"scale": ALPHA / RANK})}


@weights("peft.tuners.ia3.layer.Linear")
def ia3():
    """A number for each output, which its bias is scaled by as well; or, where the layer is one of
    `feedforward_modules`, for each input, and the bias stays.
    """
    x = draw(105, outputs=(1, OUT), inputs=(IN, 1))

    def run(scaled):
        forward = ["layer"] if scaled == "inputs" else []
        config = peft.IA3Config(target_modules=["layer"], feedforward_modules=forward)
        factors = {"ia3_l.default": ("l", x[scaled])}
        return case(adapt(config, layer=x["w0"]), factors, settings={})

    return {"outputs": run("outputs"), "inputs": run("inputs")}


@weights("peft.tuners.vera.layer.Linear")
def vera():
    """One frozen pair for two layers, of the largest sizes; each takes its first rows and columns."""
    sizes = {"first": (IN, OUT), "second": (IN - 1, OUT + 3)}
    frozen = normal(106, a=(IN, RANK), b=(RANK, OUT + 3))
    base = {name: normal(107 + i, w0=shape)["w0"] for i, (name, shape) in enumerate(sizes.items())}
    model = adapt(peft.VeraConfig(r=RANK, projection_prng_key=0), **base)
    for name, x in frozen.items():
        getattr(model.base_model, f"vera_{name.upper()}")["default"].copy_(torch.tensor(x.T))

    def run(name, seed):
        x = normal(seed, lambda_d=(RANK,), lambda_b=sizes[name][1:])
        factors = {f"vera_{path}.default": (path, x[path]) for path in x}
        return case(model, factors, settings={}, name=name, **frozen)

    return {"first": run("first", 109), "second": run("second", 110)}


@weights("peft.tuners.shira.layer.Linear")
def shira():
    """As many numbers as LoRA of that rank has, and where they are is drawn once."""
    x = draw(111, values=(IN + OUT,))
    model = adapt(peft.ShiraConfig(r=1, random_seed=4), layer=x["w0"])
    columns, rows = model.base_model.model.layer.shira_indices["default"].numpy()
    factors = {"shira_weight.default": ("values", x["values"])}
    settings, arrays = case(model, factors, settings={})
    return {"linear": (settings, arrays | {"indices": np.stack([rows, columns])})}


@weights("peft.tuners.fourierft.layer.FourierFTLinear", "float32")
def fourierft():
    """The real part of the inverse transform, divided by d_in * d_out, of a spectrum that is mostly 0.

    The spectrum has no symmetry, so what would be imaginary is dropped. The transform of a transpose is
    the transpose of the transform.
    """
    count, scale = 9, 20.0
    x = draw(112, coefficients=(count,))
    config = peft.FourierFTConfig(n_frequency=count, scaling=scale, random_loc_seed=5)
    model = adapt(config, layer=x["w0"])
    columns, rows = model.base_model.model.layer.indices["default"].numpy()
    factors = {"fourierft_spectrum.default": ("coefficients", x["coefficients"])}
    with single():
        settings, arrays = case(model, factors, settings={"scale": scale})
    return {"linear": (settings, arrays | {"indices": np.stack([rows, columns])})}


@weights("peft.PeftModel.get_nb_trainable_parameters")
def counts():
    """Of queries and values in RoBERTa, without its heads."""
    sizes = {"base": (12, 768, 12, 3072), "large": (24, 1024, 16, 4096)}
    methods = {
        ("lora", "base"): peft.LoraConfig(r=8),
        ("lora", "large"): peft.LoraConfig(r=8),
        ("vera", "base"): peft.VeraConfig(r=1024),
        ("vera", "large"): peft.VeraConfig(r=256),
    }

    def run(config, layers, width, heads, ffn):
        shape = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
        with torch.device("meta"):
            model = RobertaModel(RobertaConfig(**shape, intermediate_size=ffn))
        config.target_modules = {"query", "value"}
        trainable, _ = peft.get_peft_model(model, config).get_nb_trainable_parameters()
        about = {"layers": layers, "width": width, "rank": config.r, "trainable": trainable}
        return about, {}

    return {f"{name} {size}": run(config, *sizes[size]) for (name, size), config in methods.items()}
