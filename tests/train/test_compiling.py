"""What compiling took is said, and what was kept is told apart from what was not."""

import time

import jax
import pytest

from adaperceiver_jax.train import compiling
from adaperceiver_jax.train.compiling import Compiling, keep_programs


def run(seed: float) -> None:
    """Compiles a program that nothing else does."""

    @jax.jit
    def curious(x):
        return (x * seed).sum()

    curious(jax.numpy.ones(3))


def test_kept_programs_are_told_apart_from_compiled_ones(monkeypatch, capsys):
    monkeypatch.setattr(compiling, "_LONG", 0.0)
    seed = time.time()
    for want in ("compiled curious in ", "read the kept curious in "):
        with Compiling():
            run(seed)
        lines = capsys.readouterr().out.splitlines()
        assert next(line for line in lines if "curious" in line).startswith(want)
        jax.clear_caches()
    assert lines[-1].startswith("compiled 0 programs and read ")


def test_programs_that_compile_fast_are_only_counted(capsys):
    with Compiling():
        run(time.time())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("compiled ")
    run(time.time())
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("folder", "before", "want"),
    [("compiled", None, "{run}/compiled"), ("", None, None), ("compiled", "mine", "mine")],
)
def test_programs_are_kept_where_the_user_says_else_in_the_runs_folder(
    tmp_path, folder, before, want
):
    given = jax.config.jax_compilation_cache_dir
    try:
        jax.config.update("jax_compilation_cache_dir", before)
        keep_programs(folder, tmp_path)
        assert jax.config.jax_compilation_cache_dir == (want and want.format(run=tmp_path))
    finally:
        jax.config.update("jax_compilation_cache_dir", given)
