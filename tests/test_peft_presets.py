"""Our presets with the factors of PEFT's golden files: its kernels, gradients and numbers of parameters."""

import jax.numpy as jnp
import numpy as np
import pytest
from oracles.kept import FOLDER, near, read, tolerance
from schemes import RNG, gradients, put

from tinyattn import weights
from tinyattn.weights import Fixed, presets

FILES = read(FOLDER / "weights")
R = 3


def places(found):
    """Where the numbers are, bool like W0, and in which order of the file's they are in ours."""
    at = np.zeros(found["w0"].shape, bool)
    at[tuple(found["indices"])] = True
    return Fixed(at), np.argsort(np.ravel_multi_index(found["indices"], at.shape))


# Each: the section, the leaves that are put in, and their names in the file where they are trained.
def lora(found, scale):
    low = {f"terms/0/v/{part}": found[part] for part in "ab"}
    return presets.lora(R, scale * R, leaves="kernel$"), low, {f"terms/0/v/{p}": p for p in "ab"}


def dora(found, scale):
    names = {f"direction/terms/0/v/{part}": part for part in "ab"} | {"magnitude": "magnitude"}
    section = weights.spec("dora", rank=R, alpha=scale * R)
    return section, {path: found[name] for path, name in names.items()}, names


def hira(found):
    names = {f"terms/0/d/{part}": part for part in "ab"}
    section = presets.hira(R, leaves="kernel$")
    return section, {path: found[name] for path, name in names.items()}, names


def loha(found, scale):
    names = {f"terms/0/{f}/{part}": f"{part}{i}" for i, f in ((1, "d"), (2, "v")) for part in "ab"}
    section = presets.loha(R, scale * R, leaves="kernel$")
    return section, {path: found[name] for path, name in names.items()}, names


def ia3(found):
    side = "row" if found["l"].shape[0] == 1 else "col"
    return presets.ia3(side, leaves="kernel$"), {"terms/0/d": found["l"] - 1}, {"terms/0/d": "l"}


def vera(found):
    d_in, d_out = found["w0"].shape
    frozen = {
        "terms/0/v/a": Fixed(found["a"][:d_in]),
        "terms/0/v/b": Fixed(found["b"][:, :d_out]),
    }
    names = {"terms/0/d": "lambda_b", "terms/0/v/middle": "lambda_d"}
    own = {"terms/0/d": found["lambda_b"][None], "terms/0/v/middle": found["lambda_d"]}
    return presets.vera(R, leaves="kernel$"), frozen | own, names


def shira(found):
    at, order = places(found)
    own = {"terms/0/v/at": at, "terms/0/v/values": found["values"][order]}
    section = presets.shira(at.value.mean(), leaves="kernel$")
    return section, own, {"terms/0/v/values": "values"}


def fourierft(found, scale):
    at, order = places(found)
    place = "terms/0/v/spectrum/{}".format
    own = {place("at"): at, place("values"): found["coefficients"][order]}
    section = weights.spec("fourier", size=len(order), scale=scale)
    return section, own, {place("values"): "coefficients"}


METHODS = {f.__name__: f for f in (lora, dora, hira, loha, ia3, vera, shira, fourierft)}
CASES = [(name, case) for name in METHODS for case in sorted(FILES[name][1])]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_kernel_and_gradients_are_those_of_peft(name, case, x64):
    about, found = FILES[name]
    settings, found = about["cases"][case], found[case]
    scale = {"scale": settings["scale"]} if "scale" in settings else {}
    section, own, names = METHODS[name](found, **scale)
    scheme = weights.build([section])
    theta = scheme.init(RNG, {"kernel": jnp.asarray(found["w0"], jnp.float32)})
    assert weights.sizes(theta).trainable == settings["trainable"]
    base = "direction/w0" if name == "dora" else "w0"
    own = {f"kernel/{path}": x for path, x in (own | {base: Fixed(found["w0"])}).items()}
    theta = put(theta, own)
    near(scheme.build(theta)["kernel"], found["w"], tolerance(about), "w")
    grads = weights.leaves(gradients(theta, {"kernel": found["x"].T @ found["dout"]}))
    for path, ours in names.items():
        want = found[f"grad_{ours}"]
        if "indices" in found:
            want = want[places(found)[1]]
        got = grads[f"kernel/{path}"]
        near(got.reshape(want.shape), want, tolerance(about), ours)
    assert len(names) == sum(g is not None for g in grads.values())


# Queries and values of RoBERTa; the numbers are those of the papers, to the unit.
COUNTS = {
    "lora base": (presets.lora(8), 294_912),
    "lora large": (presets.lora(8), 786_432),
    "vera base": (presets.vera(1024), 43_008),
    "vera large": (presets.vera(256), 61_440),
}


@pytest.mark.parametrize("case", COUNTS)
def test_presets_train_as_many_numbers_as_the_papers(case):
    (section, trainable), settings = COUNTS[case], FILES["counts"][0]["cases"][case]
    L, D = settings["layers"], settings["width"]
    zeros = np.broadcast_to(np.float32(0), (D, D))
    params = {
        f"block_{i}": {name: {"kernel": zeros} for name in ("query", "value")} for i in range(L)
    }
    theta = weights.build([section]).init(RNG, params)
    found = weights.sizes(theta)
    assert found.trainable == trainable == settings["trainable"]
    # The pair of VeRA's matrices is one for all layers, and a file has its two seeds.
    frozen = 2 * 16 if case.startswith("vera") else 0
    assert found.bytes == 4 * (2 * L * D * D + trainable) + frozen
