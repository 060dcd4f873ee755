"""A finished run leaves its weights; they are exported, checked, and may start another run."""

import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny import ENCODER

from configs import digits
from experiments import export
from tinyattn import config, records, sweep, train, weights
from tinyattn.weights import presets

TINY = ENCODER | {
    "seeds": (0,),
    "task.shift": 0,
    "model.patch": 4,
    "train.steps": 2,
    "train.batch_size": 16,
    "train.eval_every": 0,
    "train.steps_per_dispatch": 2,
    "optim.warmup_steps": 0,
}
SCHEMES = (presets.train_d(), weights.spec("quantize", leaves="/w0$|head/kernel$", kind="int4"))


def base(**changes):
    return config.override(digits.get_config(), TINY | changes)


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """The directory of a table of which one run failed, and the program of the other."""
    workdir = tmp_path_factory.mktemp("table")
    (row,) = sweep.expand(base(), [("quantised", {"weights": SCHEMES})])
    (record,) = sweep.run_table([row], workdir)
    failed = {"row": "diverges", "status": "failed", "digest": "0", "error": "non-finite loss\n..."}
    records.write(records.run_dir(workdir, "0"), record | failed)
    records.gather(workdir, [record, record | failed])
    return workdir, row.program


@pytest.fixture
def out(tmp_path):
    return tmp_path / "new" / "theta.safetensors"


def test_the_column_is_the_size_of_the_file(table, out):
    folder, record = export.find(table[0], "quantised", 0)
    said = export.export(folder, record, out)
    found = weights.read(out)
    assert out.stat().st_size == found.header + record["costs"]["stored_bytes"]
    assert found.data == record["costs"]["stored_bytes"]
    assert f"as many as the {found.data:,} stored bytes" in said and "NOT" not in said
    for kind in ("whole numbers below 16", "seeds of", "float32 trained", "float32 fixed"):
        assert kind in said
    told = {"row": "quantised", "format": "theta", "seed": 0, "step": 2, "vocabulary": ""}
    assert found.meta == told | {"digest": record["digest"]}


def test_what_is_exported_predicts_what_was_recorded(table, out):
    workdir, program = table
    folder, record = export.find(workdir, "quantised", 0)
    want = records.arrays(workdir, record["digest"])
    for form in export.FORMATS:
        export.export(folder, record, out, form)
        theta = weights.load(out)
        test = program.task.test
        found = train.evaluate(program, theta, test)
        np.testing.assert_array_equal(found.labels == test.labels, want["correct"])
        np.testing.assert_allclose(found.losses, want["loss"], rtol=1e-5, atol=1e-6)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(theta))
    assert set(weights.leaves(theta)) == set(weights.leaves(weights.fold(program.init(0).theta)))


def test_one_run_is_found_by_its_folder(table):
    folder, record = export.find(table[0], "quantised", None)
    again = export.find(folder, None, None)
    assert again == (folder, record)


def refuses(call, *words):
    with pytest.raises(ValueError) as error:
        call()
    assert all(word in str(error.value) for word in words), error.value


def test_runs_that_cannot_be_exported(table, out, tmp_path):
    workdir = table[0]
    refuses(lambda: export.find(workdir, "quantized", 0), "did you mean 'quantised'")
    refuses(lambda: export.find(workdir, "quantised", 3), "has 0 such runs", "--seed=0")
    refuses(lambda: export.find(workdir, None, None), "2 such runs", "--row='diverges' --seed=0")
    refuses(lambda: export.find(workdir, "diverges", 0), "failed", "non-finite loss")
    refuses(lambda: export.find(tmp_path, None, None), "results.jsonl")
    folder, record = export.find(workdir, "quantised", 0)
    refuses(lambda: export.export(folder, record, out, "onnx"), "--format='onnx'", "theta")
    copy = shutil.copytree(folder, tmp_path / "copy")
    other = record | {"digest": "other"}
    refuses(lambda: export.export(copy, other, out), record["digest"], "not of other")
    path = copy / records.WEIGHTS
    path.write_bytes(path.read_bytes()[:-1])
    refuses(lambda: export.export(copy, record, out), str(path), "truncated")
    path.unlink()
    refuses(lambda: export.export(copy, record, out), "train.keep_weights=True")
    assert not out.exists()


def test_weights_are_kept_where_that_is_asked_for(table, tmp_path):
    workdir, program = table
    folder, record = export.find(workdir, "quantised", 0)
    assert (folder / records.WEIGHTS).exists()
    # The same run without them.
    (row,) = sweep.expand(base(**{"train.keep_weights": False, "weights": SCHEMES}), [("a", {})])
    row = row._replace(program=program._replace(config=row.program.config))
    (record,) = sweep.run_table([row], tmp_path)
    assert record["status"] == "ok"
    assert not list(tmp_path.glob(f"runs/*/{records.WEIGHTS}"))


@pytest.fixture(scope="module")
def started(table, tmp_path_factory):
    """The file of a run, and a program that starts from it under a scheme of its own."""
    out = tmp_path_factory.mktemp("out") / "theta.safetensors"
    export.export(*export.find(table[0], "quantised", 0), out)
    return out, train.make(base(**{"train.pretrained": str(out), "weights": (presets.both(),)}))


def test_training_starts_from_a_file(started):
    out, program = started
    params = weights.fold(weights.load(out))
    for seed in (0, 1):
        theta = program.init(seed).theta
        node = theta["block_0"]["attention"]["query"]["kernel"]
        own = np.asarray(params["block_0"]["attention"]["query"]["kernel"])
        np.testing.assert_array_equal(node.w0.value, own)
        for have, want in zip(
            jax.tree.leaves(weights.fold(theta)), jax.tree.leaves(params), strict=True
        ):
            np.testing.assert_array_equal(have, want)


def test_a_file_of_another_model_is_refused(started, tmp_path):
    out, _ = started

    def make(**changes):
        train.make(base(**{"train.pretrained": str(out)} | changes))

    refuses(
        lambda: make(**{"model.num_layers": 2}),
        f"train.pretrained='{out}': the file has no 'block_1/",
    )
    refuses(
        lambda: make(**{"model.ffn_width": 4}),
        "block_0/ffn/down/kernel is float32[8, 8], and the model's is float32[4, 8]",
    )
    params = dict(weights.fold(weights.load(out)), more={"kernel": np.ones(2)})
    extra = tmp_path / "more.safetensors"
    weights.save(extra, params)
    refuses(lambda: make(**{"train.pretrained": str(extra)}), "the model has no 'more/kernel'")
    refuses(lambda: make(**{"train.pretrained": "none.safetensors"}), "none.safetensors cannot be")


def test_the_program_prints_what_it_wrote_or_what_is_wrong(table, out, capsys, monkeypatch):
    given = SimpleNamespace(workdir=table[0], row="quantised", seed=0, format="params", out=out)
    monkeypatch.setattr(export.flags, "FLAGS", given)
    export.main(["export"])
    said = capsys.readouterr().out
    assert f"{out.stat().st_size:,}" in said and f"{out} was read back" in said
    given.seed = 1
    with pytest.raises(SystemExit) as stopped:
        export.main(["export"])
    assert stopped.value.code == 2 and capsys.readouterr().err.startswith("error: ")
