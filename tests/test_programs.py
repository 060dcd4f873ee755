"""The programs: what is wrong is said at once, and no way of stopping them changes a number."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_train import fit, given, rich, same_bits

from experiments import report
from tinyattn import records
from tinyattn.train import _loop

ROOT = Path(__file__).parent.parent
TABLE = """
from configs import digits
from tinyattn.config import override
from tinyattn.weights import spec

def get_config(arg=None):
    return override(digits.get_config(arg), {
        "task.shift": 0, "model.patch": 4, "model.width": 8, "model.ffn_width": 8,
        "train.steps": 120, "train.batch_size": 16, "train.eval_every": 10,
        "train.steps_per_dispatch": 5, "train.patience": 20, "train.ema_decay": 0.9,
        "optim.warmup_steps": 0, "checkpoint.every_seconds": 0.0,
    })

def rows():
    yield "dense", {}
    yield "shared", {"weights": (spec("share"),), "checkpoint.every_seconds": 1000.0}
"""
# Imports everything once, then forks for each command, before JAX has opened a device.
SERVER = """
import json, os, runpy, signal, sys, traceback
from jax._src import xla_bridge
from experiments import cli, report
from tinyattn.tasks import digits

def child(program, arguments, out, err):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv, status = [program, *arguments], 0
    try:
        runpy.run_module(program, run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    if status == 2 and xla_bridge._backends:
        print("a device was opened", file=sys.stderr)
    os._exit(status)

for line in sys.stdin:
    order = json.loads(line)
    if isinstance(order, int):
        print(os.waitstatus_to_exitcode(os.waitpid(order, 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        child(*order)
"""


class Process:
    """One command, as a process of its own."""

    def __init__(self, ask, folder, program, arguments):
        self.out, self.err = (folder / f"{time.monotonic_ns()}.{name}" for name in ("out", "err"))
        order = [f"experiments.{program}", arguments, str(self.out), str(self.err)]
        self._ask, self.pid = ask, ask(order)

    def wait(self):
        return self._ask(self.pid), self.out.read_text(), self.err.read_text()


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    }


@pytest.fixture(scope="module")
def start(environment, tmp_path_factory):
    folder = tmp_path_factory.mktemp("said")
    pipe = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipe) as server:

        def ask(order):
            server.stdin.write(json.dumps(order) + "\n")
            server.stdin.flush()
            return int(server.stdout.readline())

        yield lambda program, *arguments: Process(ask, folder, program, list(map(str, arguments)))
        server.stdin.close()


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "table.py"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def whole(environment, table, tmp_path_factory):
    """The table run from beginning to end, as a user runs it."""
    workdir = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-m", "experiments.ablate", f"--config={table}"]
    command.append(f"--workdir={workdir}")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout, done.stderr


def test_a_table_is_trained_printed_and_drawn(whole, table, start, tmp_path):
    workdir, out, err = whole
    made = {path.name for path in workdir.iterdir()}
    assert made == {"runs", "results.jsonl", "table.md", "table.csv", "pareto.png"}
    frame = records.load(workdir)
    assert list(frame["row"]) == ["dense", "shared"] and list(frame["status"]) == ["ok", "ok"]
    for share in frame["metrics.test_accuracy"]:
        assert f" {100 * share:.2f} " in out
    # A bar for the table and one for the run.
    assert "2/2" in err and "120/120" in err and "loss=" in err and "step/s" in err
    # Again it only prints; from the results alone all the rest is drawn again.
    status, again, err = start("ablate", f"--config={table}", f"--workdir={workdir}").wait()
    assert (status, again) == (0, out) and "seed" not in err
    (tmp_path / "results.jsonl").write_bytes((workdir / "results.jsonl").read_bytes())
    assert report.terminal(report.publish(tmp_path)) + "\n" == out
    for name in ("table.md", "table.csv", "pareto.png"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def saved(workdir):
    paths = workdir.glob("**/checkpoints/*")
    return sorted(int(path.name) for path in paths if path.name.isdigit())


def wait_for(workdir, step):
    """Until a checkpoint of that step is there, or a later one."""
    deadline = time.monotonic() + 120
    while max(saved(workdir), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_interrupted_it_ends_with_the_same_bits(whole, start, table, tmp_path):
    first, second = sorted(random.sample(range(10, 100, 5), 2))
    command = ("train", f"--config={table}", f"--workdir={tmp_path}")
    process = start(*command)
    wait_for(tmp_path, first)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait()[0] == -signal.SIGKILL
    assert not list(tmp_path.glob("runs/*/record.json"))

    process = start(*command)
    wait_for(tmp_path, second)
    os.kill(process.pid, signal.SIGINT)
    status, _, err = process.wait()
    assert status == 130, (first, second, err)
    assert err.strip().endswith("interrupted: the same command goes on from here")
    assert "Traceback" not in err and saved(tmp_path)[-1] >= second

    status, _, err = start(*command).wait()
    assert status == 0, err
    got, want = (records.load(d).iloc[0] for d in (tmp_path, whole[0]))
    assert (got["row"], want["row"]) == ("table", "dense")
    same = [key for key in want.index if key.startswith(("config", "metrics", "history", "digest"))]
    assert len(same) > 40 and len(want["history"]) == 12
    assert got[same].to_dict() == want[same].to_dict(), (first, second)
    arrays, wanted = (records.arrays(d, want["digest"]) for d in (tmp_path, whole[0]))
    assert {k: v.tobytes() for k, v in arrays.items()} == {
        k: v.tobytes() for k, v in wanted.items()
    }
    assert not list(tmp_path.glob("runs/*/checkpoints"))


DIGITS = "--config=configs/digits.py"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (f"{DIGITS} --config.modle.width=3", "'modle.width'; did you mean 'model.width'"),
        ("--config configs/digits.py --config.model.widht 3", "did you mean 'model.width'"),
        (f"{DIGITS} --noconfig.model.scna", "'model.scna'; did you mean 'model.scan'"),
        (f"{DIGITS} --config.model.width=1.5", "config.model.width=1.5: invalid literal for int"),
        (f"{DIGITS} --config.model.width", "Missing value for flag --config.model.width"),
        (f"{DIGITS} --config.model.attention=window", "is a section: override its fields"),
        (f"{DIGITS} --config.model.attention.name=window", "lacks window, block"),
        (f"{DIGITS}:attention=windw", "no 'windw'; did you mean 'window'"),
        (f"{DIGITS}:smoek", "'smoek'; did you mean 'smoke'"),
        ("--config=configs/digit.py", "no config file configs/digit.py; here are: configs/digits"),
        ("--config=tinyattn/masks.py", "masks.py has no get_config"),
        (f"{DIGITS} --config.optim.optimizer=adma", "'adma'; did you mean 'adam'"),
        (f"{DIGITS} --config.weights=('share',)", "'share' is no section"),
        (f"{DIGITS} stray", "unexpected arguments ['stray']"),
        (f"{DIGITS} --workdri=x", "'workdri'. Did you mean: workdir"),
        ("", "--config must have a value"),
    ],
)
def test_what_is_wrong_is_one_line_at_once(start, tmp_path, arguments, expected):
    began = time.monotonic()
    status, out, err = start("train", f"--workdir={tmp_path / 'new'}", *arguments.split()).wait()
    assert (status, out) == (2, ""), err
    # A second line would say that a device was opened, as nothing compiles without.
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert expected in err and "Traceback" not in err
    assert time.monotonic() - began < 10 and not (tmp_path / "new").exists()


def test_what_is_wrong_with_a_table(start, table, tmp_path):
    workdir = f"--workdir={tmp_path}"
    status, _, err = start("ablate", DIGITS, workdir).wait()
    assert status == 2 and "digits.py has no rows()" in err
    bad = tmp_path / "bad.py"
    bad.write_text(TABLE + '    yield "typo", {"model.widht": 3}\n')
    status, _, err = start("ablate", f"--config={bad}", workdir).wait()
    assert status == 2 and "row 'typo': unknown key 'model.widht'" in err
    assert list(tmp_path.iterdir()) == [bad]
    status, _, err = start("train", f"--config={table}").wait()
    assert status == 2 and "--workdir must have a value" in err


def patient():
    return given(rich(), steps=12, eval_every=4, patience=2)


def same(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert a._replace(theta=None) == b._replace(theta=None)
        same_bits(a.theta, b.theta)


@pytest.mark.parametrize(("seeds", "stops"), [((3,), range(2, 14, 2)), (range(8), (6,))])
def test_an_interrupt_between_any_two_calls_changes_nothing(tmp_path, seeds, stops):
    wanted = fit(patient(), tmp_path / "whole", seeds)
    assert len(wanted[0].history) == 3
    for stop in stops:
        folder, again = tmp_path / f"{stop}" / "checkpoints", []

        def report(progress, stop=stop):
            if progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(patient(), folder, seeds, report)
        assert saved(folder.parent) == [stop]  # nothing was due, but an interrupt saves
        same(fit(patient(), folder, seeds, again.append), wanted)
        assert [p.step for p in again] == list(range(stop + 2, 14, 2))


@pytest.fixture
def sigterm():
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("place", "step"), [("run", 2), ("evaluate", 4)])
def test_a_signal_is_held_until_state_and_history_agree(
    tmp_path, monkeypatch, sigterm, place, step, number
):
    """In the middle of a call, or of the evaluation that follows it."""
    program, folder = patient(), tmp_path / "checkpoints"
    wanted = fit(program, tmp_path / "whole")
    function = program.run if place == "run" else _loop.evaluate

    def signalled(*arguments):
        signal.raise_signal(number)
        return function(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if place == "evaluate":
            patched.setattr(_loop, "evaluate", signalled)
        fit(program._replace(run=signalled) if place == "run" else program, folder)
    assert saved(tmp_path) == [step]
    assert signal.getsignal(number) is signal.default_int_handler
    same(fit(program, folder), wanted)


def test_a_second_signal_does_not_wait(tmp_path):
    def impatient(*arguments):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    with pytest.raises(KeyboardInterrupt):
        fit(patient()._replace(run=impatient), tmp_path / "checkpoints")
    assert not saved(tmp_path) and signal.getsignal(signal.SIGINT) is signal.default_int_handler
