"""A theta in one file: it comes back to the bit, is as large as is said, and damage is refused."""

import dataclasses
import json
import sys
import zlib
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tinyattn import weights
from tinyattn.weights import presets

RNG = jax.random.PRNGKey(5)


def params():
    rng = np.random.default_rng(0)

    def block():
        kernel = rng.standard_normal((8, 6)).astype(np.float32)
        return {"kernel": kernel, "bias": jnp.full(6, 1 / 3, jnp.bfloat16)}

    return {f"block_{i}": block() for i in range(2)} | {"scalar": np.float32(2.5)}


BASE = weights.spec("quantize", leaves="/w0$", kind="ternary")
CHAINS = {
    "plain": (),
    "lora": (presets.lora(rank=2), BASE),
    "both": (presets.both(), weights.spec("share", leaves="w0$|/v$")),
    "supermask": (presets.supermask(),),
    "l0": (presets.diff_pruning(),),
    "vera": (presets.vera(rank=2),),
    "hashed": (presets.hashed(size=8),),
    "sparse": (presets.shira(density=0.3),),
    "int4": (weights.spec("quantize", kind="int4", zero_point=True),),
}


def theta(name="lora"):
    return weights.build(CHAINS[name]).init(RNG, params())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.safetensors"


@pytest.fixture
def blob(path):
    """The bytes of a file with seeds, codes, masks and what is shared in it."""
    tree = {name: theta(name) for name in ("lora", "vera", "sparse", "both")}
    del tree["both"]["block_1"]["kernel"], tree["vera"]["block_1"]["kernel"]
    weights.save(path, tree)
    return path.read_bytes()


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape, x.tobytes()) == (y.dtype, y.shape, y.tobytes())


@pytest.mark.parametrize("name", CHAINS)
def test_comes_back_to_the_bit_and_is_as_large_as_is_said(name, path):
    tree = theta(name)
    weights.save(path, tree, row="a", numbers=[1, 2.5])
    found = weights.read(path)
    same(found.theta, weights.compact(tree))
    same(weights.load(path), found.theta)
    same(*(jax.tree.map(np.asarray, weights.fold(x)) for x in (weights.compact(tree), found.theta)))
    assert found.meta == {"row": "a", "numbers": [1, 2.5]}
    size = path.stat().st_size
    assert weights.sizes(tree).bytes == weights.sizes(found.theta).bytes == found.data
    assert found.header + found.data == size
    # The stated header is what the format says it is.
    assert found.header == 8 + int.from_bytes(path.read_bytes()[:8], "little")
    # What was saved is a theta as well: saved again, it is the same.
    weights.save(path, found.theta)
    same(weights.load(path), found.theta)


def test_other_tools_read_the_arrays_by_path(path):
    tree = params()
    weights.save(path, {name: tree["block_0"][name] for name in ("kernel",)} | {"b": {"c": RNG}})
    found = safetensors.numpy.load_file(path)
    assert set(found) == {"kernel", "b/c"}
    np.testing.assert_array_equal(found["kernel"], tree["block_0"]["kernel"])


def test_a_flipped_byte_anywhere_is_refused(blob, path):
    rng = np.random.default_rng(0)
    header = 8 + int.from_bytes(blob[:8], "little")
    places = {*range(0, header, 7), *range(8), *range(header - 9, len(blob), 5)}
    for place in sorted(places):
        damaged = bytearray(blob)
        damaged[place] ^= int(rng.integers(1, 256))
        path.write_bytes(damaged)
        with pytest.raises(ValueError) as error:
            weights.load(path)
        assert str(error.value).startswith(f"{path}: it"), place


def test_a_truncated_file_is_refused(blob, path):
    for length in (0, 5, 8, 100, len(blob) - 300, len(blob) - 1):
        path.write_bytes(blob[:length])
        with pytest.raises(ValueError, match="truncated"):
            weights.load(path)
    path.write_bytes(blob + b"\0")
    with pytest.raises(ValueError, match="damaged"):
        weights.load(path)


def rewritten(path, blob, change, drop=(), **tensors):
    """The file with its text changed and its checksum right again, as if it were meant."""
    length = int.from_bytes(blob[:8], "little")
    text = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["tinyattn"])
    change(text)
    text["crc32"] = "0" * 8
    arrays = {k: v for k, v in safetensors.numpy.load(blob).items() if k not in drop} | tensors
    made = safetensors.numpy.save(arrays, {"tinyattn": json.dumps(text, separators=(",", ":"))})
    crc = f"{zlib.crc32(made):08x}".encode()
    path.write_bytes(made.replace(b'crc32\\":\\"00000000', b'crc32\\":\\"' + crc, 1))


def refuses(path, *words, modules=()):
    with pytest.raises(ValueError) as error:
        weights.load(path, modules)
    said = str(error.value)
    assert said.startswith(f"{path}: ") and all(word in said for word in words), said


@pytest.fixture
def small(path):
    """A file without bfloat16, which safetensors itself cannot read into NumPy."""
    weights.save(path, {"a": weights.Seeded.make(RNG, (3, 2), 0.5), "b": np.arange(3.0)})
    return path.read_bytes()


def test_what_was_meant_otherwise_is_refused(small, path):
    nothing = lambda text: None  # noqa: E731
    rewritten(path, small, nothing)
    assert weights.load(path)["b"].tolist() == [0, 1, 2]
    rewritten(path, small, lambda text: text.update(format=2))
    refuses(path, "format 2", "reads 1", "update tinyattn")
    rewritten(path, small, nothing, drop=["b"])
    refuses(path, "lacks the tensor 'b'", "load another copy")
    rewritten(path, small, nothing, c=np.zeros(2))
    refuses(path, "does not name: ['c']")
    rewritten(path, small, nothing, b=np.arange(4.0))
    refuses(path, "b is ['float64', [4]]", "says ['float64', [3]]")
    rewritten(path, small, lambda text: text["recipe"]["dict"]["a"].update(node="Seedd"))
    refuses(path, "a is a node 'Seedd'", "did you mean 'Seeded'?")
    rewritten(path, small, lambda text: text["recipe"]["dict"]["a"].update(node="os.system"))
    refuses(path, "a is a node 'os.system'")
    for recipe in ({}, [], {"tuple": 3}, {"node": "Delta", "static": {"x": 1}}, {"array": 3}):
        rewritten(path, small, lambda text, recipe=recipe: text.update(recipe=recipe))
        refuses(path, "is not one that weights.save writes")
    words = safetensors.numpy.load(small)["a"] + np.uint32([0, 1, 0, 0])
    rewritten(path, small, nothing, a=words)
    refuses(path, "a: the array of shape (3, 2) regenerated from seed", "was stored")


def test_other_files_are_refused(path):
    refuses_as = {b"\x80\x04K\x01.": "another kind", b"": "another kind"}
    for data, word in refuses_as.items():
        path.write_bytes(data)
        refuses(path, word)
    path.write_bytes(safetensors.numpy.save({"a": np.ones(2)}))
    refuses(path, "a safetensors file, but none that weights.save wrote")
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        weights.load(path.with_name("none"))


@pytest.fixture
def fork():
    """A module of a fork with a node of its own."""

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass(frozen=True)
    class Twice(weights.Node):
        half: Any
        names: tuple[str, ...] = weights.static(default=("x", ("y",)))

        def build(self, fold):
            return 2 * fold(self.half)

    module = ModuleType("a_fork")
    module.Twice = Twice
    yield module
    sys.modules.pop("a_fork", None)


def test_nodes_of_a_fork_are_found_in_the_modules_that_are_given(path, fork):
    tree = {"list": [fork.Twice(np.ones(2, np.int8)), None], "tuple": (np.zeros((0, 3)),)}
    weights.save(path, tree)
    refuses(path, "list/0 is a node 'Twice'", "modules")
    same(weights.load(path, [fork]), tree)
    other = ModuleType("another")
    other.Twice = type("Twice", (weights.Node,), {})
    refuses(path, "two nodes are called 'Twice'", modules=[fork, other])


def test_what_has_no_place_in_a_file(path, fork):
    for tree, words in (
        ({"a": np.zeros(2, complex)}, "a has dtype complex128"),
        ({"a": fork.Twice(np.ones(2), names=(np.float64("nan"),))}, "beyond JSON"),
        (
            {"a": fork.Twice(np.ones(2), names=frozenset("x"))},
            "Twice has static fields beyond JSON",
        ),
    ):
        with pytest.raises(ValueError) as error:
            weights.save(path, tree)
        assert words in str(error.value)
    with pytest.raises(ValueError, match="the header is JSON"):
        weights.save(path, {}, seed=np.int64(3))
    assert not path.exists()
