"""Times are taken in turns; a ratio is of one turn."""

import pytest

from adaperceiver_jax.evaluate.turns import Turns, spread, take_turns


def test_programs_take_turns_forwards_and_backwards_after_two_calls_each():
    calls: list[str] = []
    programs = {name: lambda name=name: calls.append(name) for name in "abc"}
    turns = take_turns(programs, repeats=3)
    assert "".join(calls) == "abc" * 2 + "abc" + "cba" + "abc"
    assert {name: len(seconds) for name, seconds in turns.wall.items()} == {"a": 3, "b": 3, "c": 3}
    assert all(second >= 0 for seconds in turns.processor.values() for second in seconds)
    with pytest.raises(ValueError, match="repeats=0: must be at least 1"):
        take_turns(programs, 0)


def test_a_ratio_is_of_one_turn():
    turns = Turns({"a": [1.0, 4.0, 2.0], "b": [2.0, 2.0, 4.0]}, {"a": [3.0] * 3, "b": [1.5] * 3})
    assert turns.ratios("a", "b") == [0.5, 2.0, 0.5]
    assert turns.ratios("a", "b", "processor") == [2.0, 2.0, 2.0]
    assert turns.seconds("b") == 2.0
    assert spread(turns.ratios("a", "b")) == "0.500 (0.500 to 2.000)"
