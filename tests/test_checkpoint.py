"""A checkpoint comes back bit for bit or not at all, whatever happened to it on disk."""

import dataclasses
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging

from tinyattn.checkpoint import Checkpoints

ROOT = Path(__file__).parent.parent


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Masked:
    values: Any
    mask: Any


class State(NamedTuple):
    step: Any
    rng: Any
    theta: Any
    opt: Any


def make_state(seed=0):
    random = np.random.default_rng(seed)
    theta = {
        "block": [jnp.asarray(random.normal(size=(3, 5)), jnp.float32), None],
        "half": jnp.asarray(random.normal(size=(7,)), jnp.bfloat16),
        "mask": Masked(random.normal(size=(2, 3, 1)), random.random(11) < 0.5),
        "empty": np.zeros((0, 4), np.int32),
        "nan": np.array([np.nan, -0.0, np.inf], np.float32),
        "big": random.normal(size=4096).astype(np.float32),
    }
    params = {"kernel": theta["block"][0], "bias": None}
    opt = optax.adamw(1e-3).init(params)
    return State(jnp.int32(seed), np.array([seed, 2**32 - 1], np.uint32), theta, opt)


def assert_same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Steps 1 and 2 of make_state(1) and make_state(2); tests work on copies."""
    directory = tmp_path_factory.mktemp("saved") / "steps"
    with Checkpoints(directory, "abc") as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, make_state(step), {"epoch": step, "best": float("inf")})
    return directory


@pytest.fixture
def steps(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "steps"))


def rewrite(path, change):
    before = path.read_bytes()
    path.write_bytes(change(before))
    assert path.read_bytes() != before


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip_middle(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGE = {
    "flipped byte": lambda step: rewrite(largest(step), flip_middle),
    "truncation": lambda step: rewrite(largest(step), lambda data: data[: len(data) // 2]),
    "empty step": empty,
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "unreadable meta": lambda step: rewrite(step / "meta" / "metadata", lambda data: b"{"),
    "another number in meta": lambda step: rewrite(
        step / "meta" / "metadata", lambda data: data.replace(b'"epoch": 2', b'"epoch": 3')
    ),
}


def test_round_trip_is_bit_exact(steps):
    with Checkpoints(steps, "abc") as checkpoints, warnings.catch_warnings():
        warnings.simplefilter("error")
        step, state, meta = checkpoints.restore(make_state())
    assert step == 2
    assert meta == {"epoch": 2, "best": float("inf")}
    assert_same_bits(state, make_state(2))
    assert all(leaf.flags.writeable and leaf.flags.aligned for leaf in jax.tree.leaves(state))


def test_shapes_are_enough_to_restore(steps):
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), make_state())
    with Checkpoints(steps, "abc") as checkpoints:
        assert_same_bits(checkpoints.restore(like)[1], make_state(2))


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "none", "abc") as checkpoints:
        assert checkpoints.restore(make_state()) is None
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_older_step(steps, damage):
    DAMAGE[damage](steps / "2")
    with Checkpoints(steps, "abc") as checkpoints:
        with pytest.warns(UserWarning, match=f"{steps / '2'} is damaged") as warned:
            step, state, meta = checkpoints.restore(make_state())
        assert (step, meta["epoch"], len(warned)) == (1, 1, 1)
        assert_same_bits(state, make_state(1))
        checkpoints.save(2, make_state(2), {})
        step, state, _ = checkpoints.restore(make_state())
        assert step == 2
        assert_same_bits(state, make_state(2))


def test_all_damaged_starts_afresh(steps):
    with Checkpoints(steps, "abc") as checkpoints:
        for damaged in (2, 1):
            for folder in steps.iterdir():
                rewrite(largest(folder), flip_middle)
            with pytest.warns(UserWarning, match="damaged") as warned:
                assert checkpoints.restore(make_state()) is None
            assert len(warned) == damaged
            checkpoints.save(1, make_state(1), {})
        assert checkpoints.restore(make_state())[0] == 1


def test_another_configuration_is_refused_and_kept(steps):
    before = sorted(steps.rglob("*"))
    with Checkpoints(steps, "xyz") as checkpoints:
        with pytest.raises(ValueError, match=r"configuration abc, this run is xyz.*delete"):
            checkpoints.restore(make_state())
        with pytest.raises(ValueError, match="call restore before"):
            checkpoints.save(3, make_state(3), {})
    assert sorted(steps.rglob("*")) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(rng=s.rng[:1]), r"state.rng is uint32\[2\], expected uint32\[1\]"),
        (lambda s: s._replace(step=jnp.float32(0)), r"step is int32\[\], expected float32\[\]"),
        (lambda s: s._replace(opt=None), r"opt\[0\].count is int32\[\], expected absent"),
        (lambda s: s._replace(theta=[s.theta]), r"is float32\[3, 5\], expected absent"),
    ],
)
def test_another_structure_is_refused(steps, change, message):
    with Checkpoints(steps, "abc") as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(change(make_state()))


def test_keep_prunes_the_oldest(tmp_path):
    with Checkpoints(tmp_path, "abc", keep=2) as checkpoints:
        for step in (1, 5, 7):
            checkpoints.save(step, {"a": np.ones(2)}, {})
        with pytest.raises(ValueError, match="greater than the last saved step, 7"):
            checkpoints.save(7, {"a": np.ones(2)}, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["5", "7"]


def test_what_cannot_be_saved_is_refused(tmp_path):
    for leaf in (1.0, np.array([{}]), jax.random.key(0)):
        with pytest.raises(ValueError, match=r"\['a'\]"):
            Checkpoints(tmp_path, "abc").save(0, {"a": leaf}, {})
    with pytest.raises(ValueError, match="JSON"):
        Checkpoints(tmp_path, "abc").save(0, {"a": np.ones(2)}, {"x": np.ones(2)})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpoints(tmp_path, "abc", keep=0)
    with pytest.raises(ValueError, match="every_seconds=-1"):
        Checkpoints(tmp_path, "abc", every_seconds=-1)


def test_orbax_does_not_fill_the_terminal(tmp_path, caplog):
    with caplog.at_level("INFO", "absl"), Checkpoints(tmp_path, "abc") as checkpoints:
        checkpoints.save(0, {"a": np.ones(2)}, {})
        checkpoints.restore({"a": np.ones(2)})
        logging.info("ours")
    assert [record.getMessage() for record in caplog.records] == ["ours"]


def test_due_keeps_saving_under_its_share_of_the_time(tmp_path):
    # The clock is read at the start, around the save, and by the `due` that is given no time.
    readings = iter([100.0, 130.0, 130.5, 180.4, 180.5])
    with Checkpoints(tmp_path, "abc", clock=lambda: next(readings)) as checkpoints:
        assert not checkpoints.due(124.9)  # a save is assumed to take 0.25 s, 1% of 25 s
        assert checkpoints.due(125.0)
        checkpoints.save(0, {"a": np.ones(2)}, {})
        assert not checkpoints.due()  # it took 0.5 s, 1% of 50 s
        assert checkpoints.due()


def test_due_by_a_fixed_interval(tmp_path):
    assert Checkpoints(tmp_path, "abc", every_seconds=0, clock=lambda: 7.0).due(7.0)
    three = Checkpoints(tmp_path, "abc", every_seconds=3, clock=lambda: 7.0)
    assert [three.due(now) for now in (7.0, 9.9, 10.0)] == [False, False, True]


KILLED = """
import sys, itertools, numpy as np
from tinyattn.checkpoint import Checkpoints
checkpoints = Checkpoints(sys.argv[1], "abc")
for step in itertools.count():
    checkpoints.save(step, {f"{i}": np.full(500, step) for i in range(20)}, {"step": step})
    print(step, flush=True)
"""


def test_kill_in_the_middle_of_saving(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        printed = [int(child.stdout.readline()) for _ in range(4)]
        time.sleep(0.01)
        child.kill()
        printed += [int(line) for line in child.stdout.read().split()]
    (tmp_path / "999.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    like = {f"{i}": np.zeros(500, int) for i in range(20)}
    with Checkpoints(tmp_path, "abc") as checkpoints:
        step, state, meta = checkpoints.restore(like)
        assert step >= printed[-1]
        assert meta == {"step": step}
        assert all((leaf == step).all() for leaf in state.values())
        checkpoints.save(step + 1, state, meta)
    assert all(path.name.isdecimal() for path in tmp_path.iterdir())
