"""Schemes on a model of someone else's package: a ResNet of `jax-resnet`, convolutions and batch norms."""

import jax
import jax_resnet
import numpy as np
import pytest
from schemes import RNG, check_built, check_kept, moved, scheme

from tinyattn import weights
from tinyattn.weights import presets

IMAGES = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
# The stem's kernel is large, and is left alone.
KERNELS = "layers_(2|4).*kernel$"
SCHEMES = {
    "W0 + D⊙V": (presets.both("row", leaves=KERNELS),),
    "seeded supermask": (presets.supermask(leaves=KERNELS),),
    "LoRA of the head": (presets.lora(2, leaves="layers_4/kernel"),),
    "DoRA": (weights.spec("dora", rank=2, leaves=KERNELS),),
    "a spectrum": (weights.spec("fourier", size=5, leaves=KERNELS),),
    "half of all weights": (weights.spec("prune", leaves=KERNELS),),
    "whole numbers of what is pruned": (
        weights.spec("prune", leaves=KERNELS),
        weights.spec("quantize", leaves="weight$", kind="int4"),
    ),
    "one copy of two kernels": (
        weights.spec(
            "share",
            layers=r"layers_2/ConvBlock_(\d+)/",
            leaves=r"layers_2/ConvBlock_\d+/Conv_0/kernel",
        ),
    ),
}


@pytest.fixture(scope="module")
def resnet():
    model = jax_resnet.ResNet(
        block_cls=jax_resnet.ResNetBlock, stage_sizes=[1], n_classes=3, hidden_sizes=(64,)
    )
    return model, jax.jit(model.init)(RNG, IMAGES)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_works_on_it(resnet, name):
    model, variables = resnet
    params, rest = variables["params"], {"batch_stats": variables["batch_stats"]}
    parts = scheme(*SCHEMES[name])
    theta = moved(parts.init(RNG, params))
    fold = jax.jit(weights.fold)
    check_built(theta, params, fold)
    check_kept(theta, fold)
    trainable, fixed = weights.partition(theta)

    def apply(own):
        return model.apply({"params": own, **rest}, IMAGES, mutable=False)

    @jax.jit
    def outputs(trainable):
        def squared(trainable):
            out = apply(weights.fold(weights.combine(trainable, fixed)))
            return (out**2).sum(), out

        return jax.grad(squared, has_aux=True)(trainable)

    grads, found = outputs(trainable)
    wanted = jax.jit(apply)(weights.reference(theta))
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    for path, g in weights.leaves(grads).items():
        assert g is None or (np.isfinite(g).all() and np.abs(g).max() > 0), path
