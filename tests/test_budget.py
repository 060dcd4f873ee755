"""A table's rows at one budget: knobs are solved for, and the table says by how much each is off."""

import pytest

from configs import digits
from tinyattn import attention, config, sweep, weights
from tinyattn.sweep import fit
from tinyattn.weights import presets

WIDTH, FFN = fit(8, 64, multiple=4), fit(1, 8, of="model.width")


def base(cost="stored_bytes", target=20_000, tolerance=0.01):
    made = digits.get_config("smoke")
    made.budget = dict(cost=cost, target=target, tolerance=tolerance)
    return made


def dense_params(D, F, L=2, classes=10, patch=4):
    """Of the digits' encoder, by hand."""
    layer = 4 * (D * D + D) + 2 * D * F + F + D + 4 * D
    return L * layer + 2 * D + patch * D + D + D * classes + classes


@pytest.mark.parametrize(("cost", "unit"), [("stored_bytes", 4), ("params", 1)])
def test_two_knobs_meet_a_budget(cost, unit):
    target = 5000 * unit
    made, met = sweep.solve(base(cost, target), {"model.width": WIDTH, "model.ffn_width": FFN})
    D, F = made.model.width, made.model.ffn_width
    assert met.value == unit * dense_params(D, F) == pytest.approx(target, rel=0.01)
    assert met.residual == met.value / target - 1
    # The coarse knob is the largest that leaves room for the fine one's least.
    assert dense_params(D, D) <= 5000 < dense_params(D + 4, D + 4)
    assert abs(5000 - dense_params(D, F)) <= abs(5000 - dense_params(D, F + 1))
    assert abs(5000 - dense_params(D, F)) <= abs(5000 - dense_params(D, F - 1))


def test_any_knob_serves_and_costs_are_those_of_the_run():
    spec = attention.spec("window", window=2, block=4)
    changes = {"model.attention": spec, "model.ffn_width": fit(128, 400)}
    made, met = sweep.solve(base("executed_flops", 1_500_000), changes)
    assert met.value == sweep.price(made, "executed_flops")
    assert made.model.attention.window == 2
    rank = {"weights": (presets.lora(4),)}
    made, met = sweep.solve(
        base("trainable_params", 20_000, 0.05), rank | {"model.ffn_width": fit(700, 900)}
    )
    assert met.value == sweep.price(made, "trainable_params")
    shared = {"weights": (weights.spec("share"),), "model.ffn_width": fit(8, 999)}
    made, met = sweep.solve(base(target=100_000), shared)
    assert 2 * met.value > sweep.price(made, "params") * 4  # bytes of one copy


def test_a_budget_is_no_part_of_a_run():
    rows = [("a", {"model.ffn_width": fit(8, 999)})]
    (row,) = sweep.expand(base(target=150_000), rows)
    (run,) = row.runs
    assert "budget" not in run.config and run.told["budget"]["residual"] < 0.01
    plain = digits.get_config("smoke")
    plain.model.ffn_width = run.config["model"]["ffn_width"]
    (same,) = sweep.expand(plain, [("a", {})])
    assert same.runs[0].digest == run.digest and "budget" not in same.runs[0].told
    assert config.digest(run.config) == run.digest


@pytest.mark.parametrize(
    ("made", "changes", "message"),
    [
        (digits.get_config, {"model.width": WIDTH}, "model.width is to be solved.*no 'budget'"),
        (lambda: base("bytes"), {}, "budget.cost='bytes'; did you mean 'stored_bytes'"),
        (base, {}, r"stored_bytes=229,480 is \+1047.4% off the budget of 20,000"),
        (
            base,
            {"model.width": fit(32, 64, multiple=4)},
            "off the budget.*nearest at.*'model.width': 32",
        ),
        (lambda: base(target=10**6), {"model.width": fit(8, 16)}, "'model.width': 16"),
        (lambda: base("decode_state_bytes"), {"model.width": WIDTH}, "does not decode"),
        (base, {"model.widht": WIDTH}, "did you mean 'model.width'"),
    ],
)
def test_what_cannot_be_met_is_refused(made, changes, message):
    with pytest.raises(ValueError, match=message):
        sweep.solve(made(), changes)


def test_illegal_knobs_are_refused():
    for low, high, multiple in ((0, 4, 1), (5, 4, 1), (1, 4, 0)):
        with pytest.raises(ValueError, match="needs 0 < low <= high"):
            fit(low, high, multiple=multiple)
