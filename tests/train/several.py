"""main.py in several processes on this machine, a CPU device each, over loopback."""

import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from tests.processes import environment
from tests.train.small import ROOT

_THEIRS = ("[Gloo] Rank", "preemption_notifier.cc", "Reached preemption sync point")
"""What gloo says of its connections, and JAX and Orbax of a SIGTERM: in C++, or as warnings."""


def start_all(
    count: int,
    config: str,
    workdir: Path,
    moments: Mapping[int, tuple[str, int]] | None = None,
    flags: Mapping[int, list[str]] | None = None,
    devices: int = 1,
) -> list[subprocess.Popen]:
    """Starts them; `moments` (as tests/train/killed.py takes them) and `flags` are of single
    processes, by index."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    env = {**environment(devices), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    if count > 1:
        env |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(count)}
    started = []
    for index in range(count):
        # Files, as a pipe that nobody reads until the end has room for 64 KiB.
        out, err = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115
        moment = (moments or {}).get(index)
        program = ["main.py"]
        if moment:
            program = ["-m", "tests.train.killed", moment[0], str(moment[1])]
        started.append(
            subprocess.Popen(
                [
                    *(sys.executable, *program, f"--config={config}", f"--workdir={workdir}"),
                    *(flags or {}).get(index, []),
                ],
                cwd=ROOT,
                env={**env, **({"JAX_PROCESS_ID": str(index)} if count > 1 else {})},
                stdout=out,
                stderr=err,
            )
        )
        started[-1].said = out, err
    return started


def finish_all(started: list[subprocess.Popen], within: float = 300) -> list[tuple[int, str, str]]:
    """Of each, its exit status, and what it said; all must end `within` seconds of the first."""
    try:
        while all(process.poll() is None for process in started):
            time.sleep(0.05)
        deadline = time.monotonic() + within
        ended = []
        for process in started:
            process.wait(timeout=max(deadline - time.monotonic(), 1))
            ended.append((process.returncode, *map(_ours, process.said)))
        return ended
    finally:
        for process in started:
            process.kill()


def _ours(said: TextIO) -> str:
    said.seek(0)
    return "".join(line for line in said if not any(words in line for words in _THEIRS))


def send_all(started: list[subprocess.Popen], number: signal.Signals) -> None:
    for process in started:
        process.send_signal(number)
