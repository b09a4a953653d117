"""Files and folders that are there whole or not at all."""

import signal
import subprocess
import sys
import threading

import pytest

from adaperceiver_jax.convert.whole import check_free, whole

STOPPED = """
import os, sys, time
from pathlib import Path
from adaperceiver_jax.convert.whole import whole
with whole(Path(sys.argv[1])) as place:
    place.mkdir()
    (place / "half").write_text("half")
    os.kill(os.getpid(), int(sys.argv[2]))
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_program_that_is_stopped_leaves_nothing(tmp_path, number):
    command = [sys.executable, "-c", STOPPED, str(tmp_path / "out"), str(int(number))]
    done = subprocess.run(command, capture_output=True, timeout=50)
    assert done.returncode != 0
    assert not list(tmp_path.iterdir())


def test_what_is_done_is_moved_there_and_an_error_leaves_nothing(tmp_path):
    with pytest.raises(KeyError), whole(tmp_path / "out") as place:
        {"written": place.write_text("half")}["not there"]
    assert not list(tmp_path.iterdir())
    with whole(tmp_path / "new" / "file") as place:
        place.write_text("content")
        assert not (tmp_path / "new" / "file").exists()
    assert (tmp_path / "new" / "file").read_text() == "content"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["file"]


def test_signals_are_as_before_afterwards_and_other_threads_may_use_it(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    with whole(tmp_path / "a") as place:
        place.write_text("a")
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before

    def work():
        with whole(tmp_path / "b") as place:
            place.write_text("b")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert (tmp_path / "b").exists()


def test_what_is_not_free(tmp_path):
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    (tmp_path / "file").write_text("")
    for name in ("link", "file", "."):
        with pytest.raises(ValueError, match=r"is there already|not the name"):
            check_free(tmp_path / name)
    with pytest.raises(ValueError, match="not the name of a file"):
        check_free(type(tmp_path)("."))
