"""Parts of command lines: errors as one line, lists of sizes."""

import argparse

import pytest

from adaperceiver_jax.tasks.command_line import counts, refusals


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (ValueError("width=9: must be in 1..8"), "ValueError: width=9: must be in 1..8"),
        (OSError("no room"), "OSError: no room"),
        (RuntimeError("CUDA out of memory. Tried to allocate 20 GiB."), "give a smaller --batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "give a smaller --batch"),
        (RuntimeError("INTERNAL: cuDNN refuses"), ""),
        (KeyError("a mistake of ours"), ""),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_other_errors_stay_what_they_are(error, ends):
    @refusals()
    def fails():
        raise error

    with pytest.raises(SystemExit if ends else type(error)) as raised:
        fails()
    assert raised.value is error if not ends else ends in raised.value.code


def test_lists_of_counts():
    assert counts("32,64") == [32, 64]
    assert counts("1-3, 7") == [1, 2, 3, 7]
    with pytest.raises(argparse.ArgumentTypeError, match="must read like 32,64 or 1-21"):
        counts("a")
    with pytest.raises(argparse.ArgumentTypeError, match="5-3 runs backwards"):
        counts("1,5-3")
