"""Running programs in other processes, also in several of jax.distributed."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of this process for one with this number of CPU devices."""
    flags = re.sub(r"(device_count)=\d+", rf"\1={devices}", os.environ["XLA_FLAGS"])
    return {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}


def said_by_processes(
    text: str, count: int, folder: Path, timeout: float, devices: int = 1
) -> list:
    """The JSON that each prints last.

    The program is called with the port to meet at, the number of processes and its own; each has
    so many CPU devices.
    """
    program = folder / "program.py"
    program.write_text(text)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, program, str(port), str(count), str(index)],
            env={**environment(devices), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, said
    return [json.loads(out.splitlines()[-1]) for out, _ in said]
