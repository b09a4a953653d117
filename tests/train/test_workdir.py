"""What cannot be a run's folder is refused before anything is compiled."""

import errno
from pathlib import Path

import pytest

from adaperceiver_jax.train import workdir as module
from adaperceiver_jax.train.workdir import check_renaming, check_shared, find_workdir


def test_an_address_is_no_folder(tmp_path):
    with pytest.raises(ValueError, match=r"--workdir=gs://bucket/run: must be a folder; mount the"):
        find_workdir("gs://bucket/run")
    assert find_workdir(str(tmp_path)) == find_workdir(tmp_path) == tmp_path


def test_a_folder_that_can_be_a_runs_is_left_as_it_was(tmp_path):
    (tmp_path / ".renamed-after").mkdir()  # of a run that was killed meanwhile
    check_renaming(tmp_path)
    check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    check_renaming(tmp_path / "new")


def test_a_mounted_bucket_that_renames_no_folder_is_refused(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Path, "rename", refuse)
    with pytest.raises(ValueError, match=r"Too many open files.*gcsfuse mounts needs --rename-dir"):
        check_renaming(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_another_process_does_not_share_is_refused(tmp_path, monkeypatch):
    def unseen(where, word=""):
        assert (tmp_path / word).exists()
        return [word, ".process-1-0badcafe"]

    monkeypatch.setattr(module, "wait_for_all", unseen)
    with pytest.raises(ValueError, match=r"what process 1 writes there is not seen here; take a"):
        check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
