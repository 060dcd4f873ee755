"""The programs: what is wrong is said at once, and no way of stopping them changes a number."""

import itertools
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
import traceback
from pathlib import Path
from unittest import mock

import pytest
from jax._src import xla_bridge
from test_train import fit, given, rich, same_bits

from experiments import report
from tinyattn import records
from tinyattn.train import _loop

ROOT = Path(__file__).parent.parent
DIGITS = "--config=configs/digits.py"
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


def command(program, arguments, out, err):
    """`python -m PROGRAM ARGUMENTS` in a process that has imported everything and done nothing."""
    os.chdir(ROOT)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv, status = [program, *arguments], 0
    try:
        runpy.run_module(f"experiments.{program}", run_name="__main__")
    except SystemExit as error:
        status = error.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    if status == 2 and xla_bridge._backends:
        print("a device was opened", file=sys.stderr)
    os._exit(status)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """Starts a command as a process of its own: its id, and how to wait for it."""
    folder, numbers = tmp_path_factory.mktemp("said"), itertools.count()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["test_programs", "tinyattn.tasks.digits"])
    environment = {
        "PYTHONPATH": os.pathsep.join(sys.path),  # where the server finds what it imports
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
    }

    def started(program, *arguments):
        out, err = (folder / f"{next(numbers)}.{name}" for name in ("out", "err"))
        process = context.Process(target=command, args=(program, arguments, out, err))
        process.start()

        def wait():
            process.join()
            return process.exitcode, out.read_text(), err.read_text()

        return process.pid, wait

    with mock.patch.dict(os.environ, environment):
        yield started


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("configs") / "table.py"
    path.write_text(TABLE)
    return path


@pytest.fixture(scope="module")
def whole(start, table, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    status, out, err = start("ablate", f"--config={table}", f"--workdir={workdir}")[1]()
    assert status == 0, err
    return workdir, out, err


def test_a_table_is_trained_printed_and_drawn(whole, table, start, tmp_path):
    workdir, out, err = whole
    made = {path.name for path in workdir.iterdir()}
    assert made == {".lock", "runs", "results.jsonl", "table.md", "table.csv", "pareto.png"}
    for share in records.load(workdir)["metrics.test_accuracy"]:
        assert f" {100 * share:.2f} " in out
    # A bar for the table and one for the run.
    assert "2/2" in err and "120/120" in err and "loss=" in err and "step/s" in err
    # Again it only prints; from the results alone all the rest is drawn again.
    status, again, err = start("ablate", f"--config={table}", f"--workdir={workdir}")[1]()
    assert (status, again) == (0, out) and "seed" not in err
    (tmp_path / "results.jsonl").write_bytes((workdir / "results.jsonl").read_bytes())
    assert report.terminal(report.publish(tmp_path)) + "\n" == out
    for name in ("table.md", "table.csv", "pareto.png"):
        assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def saved(folder):
    return sorted(int(n) for n in os.listdir(folder) if n.isdigit()) if folder.exists() else []


def wait_until_saved(folder, step):
    deadline = time.monotonic() + 120
    while max(saved(folder), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_and_interrupted_it_ends_with_the_same_bits(whole, start, table, tmp_path):
    want = records.load(whole[0]).iloc[0]
    arguments = ("train", f"--config={table}", f"--workdir={tmp_path}")
    folder = records.run_dir(tmp_path, want["digest"]) / "checkpoints"
    steps = sorted(random.sample(range(10, 100, 5), 3))
    for number, step in zip((signal.SIGKILL, signal.SIGINT, signal.SIGTERM), steps, strict=True):
        pid, wait = start(*arguments)
        wait_until_saved(folder, step)
        os.kill(pid, number)
        status, _, err = wait()
        assert saved(folder)[-1] >= step and not (folder.parent / "record.json").exists(), steps
        if number == signal.SIGKILL:
            assert status == -number
        else:
            assert status == 130 and "Traceback" not in err, err
            assert err.strip().endswith("interrupted: the same command goes on from here")
    status, _, err = start(*arguments)[1]()
    assert status == 0, err
    got = records.load(tmp_path).iloc[0]
    assert (got["row"], want["row"]) == ("table", "dense")
    same = [key for key in want.index if key.startswith(("config", "metrics", "history", "digest"))]
    assert len(same) > 40 and len(want["history"]) == 12
    assert got[same].to_dict() == want[same].to_dict(), steps
    same_bits(*(records.arrays(d, want["digest"]) for d in (tmp_path, whole[0])))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (f"{DIGITS} --config.modle.width=3", "'modle.width'; did you mean 'model.width'"),
        ("--config configs/digits.py --config.model.widht 3", "did you mean 'model.width'"),
        (f"{DIGITS} --config.model.width=1.5", "config.model.width=1.5: invalid literal for int"),
        (f"{DIGITS} --config.model.width", "Missing value for flag --config.model.width"),
        (f"{DIGITS} --config.model.attention=window", "is a section: override its fields"),
        (f"{DIGITS} --config.model.attention.name=window", "has no field 'cap'"),
        (f"{DIGITS}:attention=windw", "no 'windw'; did you mean 'window'"),
        ("--config=configs/digit.py", "digit.py; did you mean 'configs/digits.py'"),
        ("--config=tinyattn/masks.py", "masks.py has no get_config"),
        (f"{DIGITS} --config.optim.optimizer=adma", "'adma'; did you mean 'adam'"),
        (f"{DIGITS} --config.weights=('share',)", "'share' is no section"),
        (f"{DIGITS} stray", "unexpected arguments ['stray']"),
        (f"{DIGITS} --workdri=x", "'workdri'. Did you mean: workdir"),
        ("", "--config must have a value"),
    ],
)
def test_what_is_wrong_is_one_line_at_once(start, tmp_path, arguments, expected):
    status, out, err = start("train", f"--workdir={tmp_path / 'new'}", *arguments.split())[1]()
    assert (status, out) == (2, ""), err
    # A second line would say that a device was opened, as nothing compiles without.
    assert err.startswith("error: ") and err.count("\n") == 1 and expected in err, err
    assert not (tmp_path / "new").exists()


def test_what_is_wrong_with_a_table(start, table, tmp_path):
    bad, workdir = tmp_path / "bad.py", tmp_path / "new"
    bad.write_text(TABLE + '    yield "typo", {"model.widht": 3}\n')
    for expected, *order in (
        ("digits.py has no rows()", "ablate", DIGITS, f"--workdir={workdir}"),
        ("row 'typo': unknown key", "ablate", f"--config={bad}", f"--workdir={workdir}"),
        ("--workdir must have a value", "train", f"--config={table}"),
    ):
        status, _, err = start(*order)[1]()
        assert status == 2 and expected in err and not workdir.exists()


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
        folder, again = tmp_path / f"{stop}", []

        def report(progress, stop=stop):
            if progress.step == stop:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            fit(patient(), folder, seeds, report)
        assert saved(folder) == [stop]  # nothing was due, but an interrupt saves
        same(fit(patient(), folder, seeds, again.append), wanted)
        assert [p.step for p in again] == list(range(stop + 2, 14, 2))


@pytest.mark.parametrize(
    ("place", "signals", "steps"), [("run", 1, [2]), ("evaluate", 1, [4]), ("run", 2, [])]
)
def test_a_signal_is_held_until_state_and_history_agree(
    tmp_path, monkeypatch, place, signals, steps
):
    """In the middle of a call, or of the evaluation after it; a second one is heard at once."""
    program, folder = patient(), tmp_path / "checkpoints"
    wanted = fit(program, tmp_path / "whole")
    function = program.run if place == "run" else _loop.evaluate

    def signalled(*arguments):
        for _ in range(signals):
            signal.raise_signal(signal.SIGINT)
        return function(*arguments)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        if place == "evaluate":
            patched.setattr(_loop, "evaluate", signalled)
        fit(program._replace(run=signalled) if place == "run" else program, folder)
    assert saved(folder) == steps
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    same(fit(program, folder), wanted)
