"""A run of several processes, one per host: joining, waiting for each other, stopping together.

On one process all of it is free and does nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import jax
from flax.traverse_util import flatten_dict
from jax._src.clusters import ClusterEnv
from jax.experimental import multihost_utils

from adaperceiver_jax.train.meeting import GOES_ON, Host, Member
from adaperceiver_jax.train.settings import Settings

ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
_NEWS = 2.0
"""Seconds in which a process that fails hears that another is gone: then that is the reason."""
_JAX_LATER = 3
"""JAX's own heartbeats end a process without saying which is lost: they are the net below."""

_member: Member | None = None
_index = 0
_failing = False


@dataclasses.dataclass(frozen=True)
class Place:
    """A process's place among those of its run."""

    address: str
    """'host:port' of the first process."""
    count: int
    index: int


def find_place(wanted: bool, wait: float) -> Place | None:
    """The place from the environment, or from this pod or cluster; None: a run of one process.

    Args:
      wanted: whether to look for a pod or cluster, too.
      wait: seconds to look for its first host.
    """
    given = os.environ.get(ADDRESS), _number(COUNT), _number(INDEX)
    if not wanted and given == (None, None, None):
        return None
    # JAX's `initialize` asks the same, but tells nobody what it found; there is no public name.
    try:
        found: tuple[Any, ...] = (
            ClusterEnv.auto_detect_unset_distributed_params(*given, None, None, round(wait))[:3]
            if None in given
            else given
        )
    except RuntimeError as error:
        raise ValueError(f"this pod's first host cannot be found: {error}") from error
    for name, value in zip((ADDRESS, COUNT, INDEX), found, strict=True):
        if value is None:
            raise ValueError(
                f"{name} is not set, and this is no TPU pod, Slurm or GKE job that would tell: "
                f"give each process {ADDRESS}=HOST:PORT (of the first), {COUNT} and {INDEX}"
            )
    address, count, index = found
    if not 0 <= index < count:
        raise ValueError(f"{INDEX}={index}: must be from 0 to {count - 1}, as {COUNT}={count}")
    if not address.rpartition(":")[2].isdigit():
        raise ValueError(f"{ADDRESS}={address!r}: must read like HOST:PORT")
    return Place(address, count, index)


def join(settings: Settings, workdir: str, wanted: bool = False) -> None:
    """Meets the other processes and starts JAX's service; before anything asks for a device.

    ValueError if there is nobody to meet, or if they are not all about to do the same.

    Args:
      workdir: of the run.
      wanted: whether this is a pod or cluster of which all hosts take part; otherwise the
        environment says so, or it is a run of one process.
    """
    global _member, _index
    times = settings.processes
    place = find_place(wanted, times.wait)
    if place is None or place.count == 1:
        return
    host, _, port = place.address.rpartition(":")
    if place.index == 0:
        Host(int(port), place.count, times.wait, times.lost_after)
    values = {
        f"config.{key}": repr(value)
        for key, value in flatten_dict(dataclasses.asdict(settings), sep=".").items()
    }
    _index = place.index
    _member = Member(
        (host.strip("[]"), int(port)),
        place.index,
        place.count,
        {**values, "--workdir": os.path.abspath(workdir), **_versions()},
        wait=times.wait,
        lost_after=times.lost_after,
        ended=_end,
    )
    if place.index:
        _keep_quiet()
    jax.distributed.initialize(
        place.address,
        place.count,
        place.index,
        initialization_timeout=round(times.wait),
        heartbeat_timeout_seconds=round(_JAX_LATER * times.lost_after),
        shutdown_timeout_seconds=round(times.wait),
    )


def wait_for_all(where: str, word: str = "") -> list[str]:
    """Waits until all processes are there, and gives the words of all, by index; if one is not in
    time, all end and name it."""
    if _member is not None:
        return _member.wait_for_all(where, word)
    if jax.process_count() > 1:
        raise ValueError(
            f"{jax.process_count()} processes share the devices, but they have not met: run "
            "main.py with --distributed, or call adaperceiver_jax.train.processes.join"
        )
    return [word]


def leave() -> None:
    """Ends a run that went well."""
    global _member
    if _member is None:
        return
    _member.wait_for_all("the end", "", patient=True)  # the first may still write the model
    _member.leave()
    jax.distributed.shutdown()
    _member = None


def stop(why: str, status: int = 1, goes_on: bool = True) -> NoReturn:
    """Says why and ends this process and, where there are several, the others with it.

    goes_on: whether to tell these that the same command goes on, which it does not if it was
      refused.
    """
    global _failing
    if _member is None:
        print(why, file=sys.stderr)
        sys.exit(status)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is ending
    # When a process is gone the others fail, too, in whatever they did together: they wait here
    # until they are told, and `_end` ends them with what is the reason.
    while _member.ends(_NEWS):
        time.sleep(_NEWS)
    _failing = True
    _say(why)
    reason = why.strip().splitlines()[-1].removesuffix(f"; {GOES_ON}")
    _member.fail(f"{reason}; {GOES_ON}" if goes_on else reason)
    _exit(status)


class Interrupt:
    """A context in which the first SIGTERM or SIGINT is a request, and a second one is itself.

    On many processes SIGTERM is left to jax.distributed, which tells all of them, also where only
    one got it; there a second one is nothing more, as others' may come late.
    """

    def __init__(self) -> None:
        self._asked = False
        self._times = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupt:
        several = jax.process_count() > 1
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT,) if several else (signal.SIGTERM, signal.SIGINT):
                handler = self._pass_on if several else self._ask
                self._before[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        self._restore()

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._restore()
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def asked(self) -> bool:
        """True if asked to stop; processes, which must all ask as often, hear it together."""
        if jax.process_count() > 1:
            self._times += 1
            self._asked |= multihost_utils.reached_preemption_sync_point(self._times)
        return self._asked


def _end(why: str) -> None:
    """Called in a thread: the main one may wait forever for a process that is gone."""
    if _failing:
        return  # the reason is this process, and said
    _say(why)
    _exit(1)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the log's disk may be what is full; the end is to come
        sys.stdout.flush()
        print(f"process {_index} ({socket.gethostname()}): {text}", file=sys.stderr, flush=True)


def _exit(status: int) -> NoReturn:
    os._exit(status)  # what Python does at its end waits for the other processes


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdigit():
        raise ValueError(f"{name}={text!r}: must be a whole number")
    return None if text is None else int(text)


def _versions() -> dict[str, str]:
    """Versions of the code: processes whose programs differ wait for each other forever."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return {"the version of jax": jax.__version__, "the code's digest": digest.hexdigest()[:12]}


def _keep_quiet() -> None:
    """Only the first process speaks; others name images that they alone could not read, and
    errors."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    warnings.simplefilter("ignore")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"process {_index}: %(levelname)s: %(message)s"))
    handler.addFilter(
        lambda record: (
            record.levelno >= logging.ERROR or record.name.startswith("adaperceiver_jax.data")
        )
    )
    logging.getLogger().handlers = [handler]
