"""A config says what it means: no typo passes, nothing stale stays, equal configs share a name."""

import copy
import dataclasses
import sys

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from configs import digits
from tinyattn import attention, config, model, registry, sweep, train, weights


def base():
    """References between fields, a section to swap and a list of sections."""
    made = ml_collections.ConfigDict()
    made.seeds = (0, 1)
    made.rate = 1.0
    made.note = None
    made.model = {"width": 24, "attention": attention.spec("dense", num_heads=4, num_kv_heads=2)}
    made.model.ffn_width = made.model.get_ref("width") * 4
    made.weights = (weights.spec("share"), weights.spec("delta"))
    return made.lock()


def test_leaves_are_the_keys_of_the_command_line():
    found = config.leaves(base())
    assert found["model.ffn_width"] == 96 and found["seeds"] == (0, 1)
    assert found["weights[1].products[0].d.kind"] == "row"
    assert not {"model", "weights", "weights[0]", "weights[1].products"} & set(found)
    for key, value in found.items():
        assert config.check_key(base(), key) == value


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("modle.width", "model.width"),
        ("model.widht", "model.width"),
        ("model.attention.num_haeds", "model.attention.num_heads"),
        ("weights[1].w", "weights[1].w0"),
        ("weights[2].w0", "weights[1].w0"),
        ("weights[1].products[1].d.kind", "weights[1].products[0].d.kind"),
        ("seed", "seeds"),
        ("model.width.x", "model.width"),
    ],
)
def test_a_typo_names_the_nearest_key(key, meant):
    with pytest.raises(ValueError, match="unknown key") as caught:
        config.override(base(), {key: 1})
    assert repr(meant) in str(caught.value).partition("Valid names")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.width": 24.5}, r"model.width = 24.5 is a float; the base has the int 24"),
        ({"model.width": "24"}, "is a str; the base has the int 24"),
        ({"model.width": True}, "is a bool; the base has the int"),
        ({"rate": "fast"}, "is a str; the base has the float"),
        ({"rate": None}, "is a NoneType; the base has the float"),
        ({"seeds": 3}, "is a int; the base has the tuple"),
        ({"model.attention": {"name": "dense"}}, r"model.attention is a section: .* give a spec"),
        ({"model": {"width": 3}}, "model is a section"),
        ({"model.width": attention.spec("dense")}, "model.width is not a section"),
        ({"weights": weights.spec("share")}, "weights is not a section"),
    ],
)
def test_a_value_of_another_kind_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config.override(base(), changes)


def test_leaves_are_replaced_one_by_one():
    changes = {"rate": 3, "note": "any", "seeds": [5], "weights[1].w0": "seed", "model.width": 8}
    made = config.override(base(), changes)
    assert type(made.rate) is float and made.rate == 3.0 and made.note == "any"
    assert made.seeds == (5,)
    assert made.weights[1]["w0"] == "seed" and made.weights[0] == dict(weights.spec("share"))
    # Also where ml_collections does not see to it: 1 and 1.0 would be two configurations.
    inner = config.override(made, {"weights[1].products[0].v.std": 2}).weights[1]["products"][0]
    assert type(inner["v"]["std"]) is float and inner["v"]["std"] == 2.0
    assert made.is_locked


def test_the_base_stays_and_references_live_on():
    original = base()
    before = copy.deepcopy(original)
    made = config.override(original, {"model.width": 32, "weights[0].groups": 2, "seeds": (9,)})
    assert (made.model.width, made.model.ffn_width) == (32, 128)
    assert original == before and config.digest(original) == config.digest(before)
    again = config.override(made, {"model.width": 10})
    assert again.model.ffn_width == 40 and made.model.ffn_width == 128


def test_references_into_a_swapped_section_live_on():
    original = base()
    with original.unlocked():
        original.model.head_sum = original.model.attention.get_ref("num_heads") * 10
        original.model.attention.head_dim = original.model.get_ref("width")
    window = attention.spec("window", num_heads=2)
    made = config.override(original, {"model.attention": window, "model.width": 30})
    assert made.model.head_sum == 20 and original.model.head_sum == 40
    assert made.model.attention.head_dim == 30 and original.model.attention.head_dim == 24


def test_a_spec_replaces_the_section():
    """Only what both inherit from `Heads` is kept, unless the row gives it."""
    made = config.override(base(), {"model.attention": attention.spec("window", window=7)})
    assert made.model.attention.to_dict() == dict(
        attention.spec("window", window=7, num_heads=4, num_kv_heads=2)
    )
    linear = attention.spec("linear", num_kv_heads=4)
    back = config.override(made, {"model.attention": linear}).model.attention.to_dict()
    assert back == dict(attention.spec("linear", num_heads=4, num_kv_heads=4))
    # A choice is a choice even where it is the default.
    given = config.override(made, {"model.attention": attention.spec("linear", num_kv_heads=0)})
    assert given.model.attention.num_kv_heads == 0
    # The same part again begins from its defaults.
    fresh = config.override(made, {"model.attention": attention.spec("window", num_heads=3)})
    assert fresh.model.attention.to_dict() == dict(attention.spec("window", num_heads=3))


def test_nothing_is_kept_between_parts_without_a_common_base():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine:
        num_heads: int = 1

    kept = registry.replace(
        "tinyattn.attention", attention.spec("dense", num_heads=8), attention.spec("window")
    )
    assert kept["num_heads"] == 8
    old = weights.spec("share", leaves="/ffn/")
    assert registry.replace("tinyattn.weights", old, weights.spec("delta"))["leaves"] == "kernel$"
    with pytest.raises(ValueError, match=r"lacks num_heads; give every field"):
        registry.construct(Mine, {}, "mine")


def test_a_list_of_sections_is_replaced_whole():
    row = {"weights": (weights.presets.both("col"), weights.spec("share", keep="/d$"))}
    made = config.override(base(), row)
    assert [section["name"] for section in made.weights] == ["delta", "share"]
    assert made.weights[0]["products"][0]["d"]["kind"] == "col"
    assert config.override(made, {"weights": ()}).weights == ()


def test_a_new_name_alone_does_not_make_another_part():
    stale = config.override(base(), {"model.attention.name": "window"})
    with pytest.raises(ValueError, match=r"overriding 'name' alone keeps .* no field 'cap'"):
        attention.build(stale.model.attention)
    window = config.override(base(), {"model.attention": attention.spec("window")})
    stale = config.override(window, {"model.attention.name": "dense"})
    with pytest.raises(ValueError, match=r"overriding 'name' alone keeps .* no field 'dilation'"):
        attention.build(stale.model.attention)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attention.spec("windw"), "no 'windw'; did you mean 'window'"),
        (lambda: attention.spec("window", windw=3), "no field 'windw'; did you mean 'window'"),
        (lambda: weights.presets.both("colum"), "did you mean 'col'"),
        (lambda: attention.spec("_shell"), "has no '_shell'"),
        (lambda: model.spec(widht=3), "no field 'widht'; did you mean 'width'"),
        (lambda: attention.build({"window": 3}), "needs a 'name'"),
        (lambda: weights.build([1]), "1 is no section of tinyattn.weights: give one by spec"),
        (lambda: weights.build(["share"]), "'share' is no section"),
    ],
)
def test_unknown_parts_and_fields_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_digest_names_a_configuration():
    name = config.digest(base())
    assert len(name) == 16 and name == config.digest(base())
    turned = {key: base()[key] for key in reversed(list(base()))}
    assert config.digest(turned) == name
    assert config.digest(config.plain(base())) == name
    for changes in (
        {"weights": tuple(reversed(base().weights))},
        {"weights[0].groups": 2},
        {"seeds": (1, 0)},
        {"rate": 1.0000001},
        {"note": ""},
    ):
        assert config.digest(config.override(base(), changes)) != name, changes
    # Stored once, for a digest that changes makes every finished run of every reader start again.
    assert config.digest({"b": (1, 2.5), "a": {"name": "x⊙y", "on": True}}) == "615cbe42d45973ac"


def test_the_argument_of_a_file():
    chosen = config.parse_arg("attention=my.ring,smoke", attention="dense", smoke=False, x=False)
    assert chosen.to_dict() == {"attention": "my.ring", "smoke": True, "x": False}
    assert config.parse_arg(None, smoke=False).smoke is False
    for arg, message in (
        ("smoek", "'smoek'; did you mean 'smoke'"),
        ("smoke=1", "'smoke=1': write smoke"),
        ("attention", "'attention': write attention=VALUE"),
        ("attenton=dense", "did you mean 'attention'"),
    ):
        with pytest.raises(ValueError, match=message):
            config.parse_arg(arg, attention="dense", smoke=False)


def test_rows_are_combined():
    ab = list(sweep.grid({"optim.a": [1, 2], "model.b": ["x"]}))
    assert ab == [
        ("a=1 b=x", {"optim.a": 1, "model.b": "x"}),
        ("a=2 b=x", {"optim.a": 2, "model.b": "x"}),
    ]
    pairs = list(sweep.zipped({"w": [8, 16], "h": [2, 4]}))
    assert pairs == [("w=8 h=2", {"w": 8, "h": 2}), ("w=16 h=4", {"w": 16, "h": 4})]
    with pytest.raises(ValueError, match=r"differ in length: .*'w': 1, 'h': 2"):
        list(sweep.zipped({"w": [8], "h": [2, 4]}))
    crossed = list(
        sweep.cross([("", {"a": 0}), ("two", {"a": 1})], sweep.grid({"a": [5], "c": [6]}))
    )
    assert crossed == [("a=5 c=6", {"a": 5, "c": 6}), ("two a=5 c=6", {"a": 5, "c": 6})]
    named = [("base", {}), *sweep.cross(sweep.grid({"a": [1, 2]}), iter(pairs))]
    assert len(named) == 5 and named[-1][0] == "a=2 w=16 h=4"


def test_flags_reach_into_lists(monkeypatch):
    made = config.override(
        digits.get_config(), {"weights": (weights.spec("delta"), weights.spec("share"))}
    )
    given = [
        "--config.weights[0].products[0].d.kind=col",
        "--config.weights[1].groups=2",
        "--config.seeds=7",
    ]
    monkeypatch.setattr(sys, "argv", ["program", *given])
    values = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", made, flag_values=values)
    values(sys.argv)
    assert values.config.weights[0]["products"][0]["d"]["kind"] == "col"
    assert values.config.weights[1]["groups"] == 2
    assert values.config.seeds == (7,)


def test_every_section_of_a_config_is_exact():
    made = digits.get_config("smoke")
    with made.unlocked():
        made.train.setps = 3
    with pytest.raises(ValueError, match="train has no field 'setps'; did you mean 'steps'"):
        train.make(made)
