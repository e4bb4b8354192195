"""Grammar of a sweep's space, and the keys that it may name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from densenet_backbones.tuning.space import (
    Knob,
    check_space,
    count_points,
    parse_knob,
    parse_values,
    read_space,
    resolve_key,
)

OPTIONS = (
    "model.detector",
    "model.memory",
    "model.optimizer.lr",
    "model.optimizer.name",
    "model.schedule.name",
    "data.batch_size",
)
FLAGS = ("lr", "batch-size", "memory", "size")


@pytest.mark.parametrize(
    ("text", "choices", "words"),
    [
        ("a=8,12,24", (8, 12, 24), ["--a=8", "--a=12", "--a=24"]),
        ("a=1.0,0.5", (1.0, 0.5), ["--a=1.0", "--a=0.5"]),
        ("a=1e-3,1e-2", (1e-3, 1e-2), ["--a=0.001", "--a=0.01"]),
        ("a=[6, 12],[4]", ("[6, 12]", "[4]"), ["--a=[6, 12]", "--a=[4]"]),
        ("--a.b=none,null,true", ("none", None, True), ["--a.b=none", "--a.b=null", "--a.b=true"]),
        ("a={x: 1},{x: 2}", ('{"x": 1}', '{"x": 2}'), ['--a={"x": 1}', '--a={"x": 2}']),
    ],
)
def test_values_are_read_and_written(text, choices, words):
    knob = parse_knob(text)
    assert knob.choices == choices and [type(c) for c in knob.choices] == [type(c) for c in choices]
    assert [knob.write(choice) for choice in knob.choices] == words


@pytest.mark.parametrize(
    ("text", "knob"),
    [
        ("lr=1e-4..1e-1:log", Knob("lr", (), 1e-4, 1e-1, True)),
        ("k=1..4", Knob("k", (), 1, 4)),
        ("k=8..64:step=8", Knob("k", (), 8, 64, False, 8)),
        ("k=0..1:step=0.25", Knob("k", (), 0, 1, False, 0.25)),
        ("k=0..1.5", Knob("k", (), 0.0, 1.5)),
    ],
)
def test_ranges_are_read(text, knob):
    if text == "k=0..1:step=0.25":
        with pytest.raises(ValueError, match="step of whole numbers"):
            parse_knob(text)
        return
    assert parse_knob(text) == knob
    assert knob.distribution._contains(knob.distribution.to_internal_repr(knob.low))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("growth_rate", "must be KEY=VALUES"),
        ("=3", "must be KEY=VALUES"),
        ("a=3..1", "must rise"),
        ("a=0..1:log", "begins above 0"),
        ("a=1..9:log:step=2", "log or step, not both"),
        ("a=1..9:lgo", "stand log or step=NUMBER, got 'lgo'"),
        ("a=1..", "a range is LOW..HIGH"),
        ("a=1,1", "a value twice"),
        ("a=1,true", "a value twice"),
        ("a=[1", "not valid YAML"),
        ("a=.inf", "finite"),
        ("a=1e999..2", "must rise"),
        ("a=" + ",".join(map(str, range(300))), "300 values, more than 200"),
    ],
)
def test_wrong_values_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_knob(text)


@given(st.lists(st.integers() | st.floats(allow_nan=False, allow_infinity=False), min_size=1))
def test_a_list_of_numbers_comes_back_as_it_was(values):
    values = list({float(v): v for v in values}.values())[:200]
    knob = parse_values("key", values)
    assert parse_values("key", knob.describe()).choices == knob.choices == tuple(values)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text):
    try:
        knob = parse_knob(text)
    except ValueError:
        return
    assert parse_values(knob.key, list(knob.choices) or knob.describe()) == knob


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("model.optimizer.lr", "model.optimizer.lr"),
        ("optimizer.lr", "model.optimizer.lr"),
        ("optimizer", "model.optimizer"),
        ("lr", "lr"),
        ("batch_size", "batch-size"),
        ("growth_rate", "model.args.growth_rate"),
        ("output_stride", "model.args.backbone_kwargs.output_stride"),
        ("tap", "model.args.backbone_kwargs.tap"),
        ("memory", "memory"),
        ("model.args.backbone_kwargs.growth_rate", "model.args.backbone_kwargs.growth_rate"),
        ("model.args.depths", "model.args.depths"),
    ],
)
def test_keys_are_found(key, meant):
    assert resolve_key(key, OPTIONS, FLAGS) == meant


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("optimizer.lrr", "no option optimizer.lrr; did you mean 'optimizer.lr'"),
        ("growth_rat", "did you mean 'growth_rate'"),
        ("model.args.growth_rat", "did you mean 'growth_rate'"),
        ("name", "the sweep names the folders"),
        ("seed", "--seeds repeats"),
        ("trainer.budget_", "no option"),
    ],
)
def test_wrong_keys_are_refused_with_the_nearest(key, message):
    with pytest.raises(ValueError, match=message):
        resolve_key(key, OPTIONS, FLAGS)


def test_a_short_end_that_several_options_have_is_refused():
    options = (*OPTIONS, "data.optimizer.lr")
    with pytest.raises(ValueError, match=r"may be data.optimizer.lr or model.optimizer.lr"):
        resolve_key("optimizer.lr", options, FLAGS)


def test_a_file_holds_the_same_grammar(tmp_path):
    file = tmp_path / "space.yaml"
    file.write_text("growth_rate: [8, 12]\nlr: 1e-3..1e-1:log\nblock_config: [[1, 2], [3]]\n")
    knobs = read_space(file)
    assert knobs == [
        parse_knob("growth_rate=8,12"),
        parse_knob("lr=1e-3..1e-1:log"),
        parse_knob("block_config=[1,2],[3]"),
    ]
    assert count_points(knobs) is None and count_points(knobs[::2]) == 4
    file.write_text("[1]")
    with pytest.raises(ValueError, match="mapping of keys"):
        read_space(file)


def test_spaces_are_bounded():
    with pytest.raises(ValueError, match="nothing is tried"):
        check_space([])
    with pytest.raises(ValueError, match="a is tried twice"):
        check_space([Knob("a", (1,)), Knob("a", (2,))])
    with pytest.raises(ValueError, match="31 keys"):
        check_space([Knob(f"k{n}", (1,)) for n in range(31)])
