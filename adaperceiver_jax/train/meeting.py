"""Processes that know of each other: a line of TCP from each to the first, from beginning to end.

JAX has a service of its own for this, and it is started as well. But that ends a process from C++,
with a stack trace, where nothing answers or another is gone, and it finds out by missing
heartbeats; a line that breaks tells at once. So the processes meet here before it is started, on
the port that it takes over. A process that stands still, or whose host is down, breaks no line: so
each end says something now and then, and one that is silent is named.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

GOES_ON = "the same command goes on from the last checkpoint"
_HELLO = 10.0
"""Seconds in which whoever connects has to say who it is."""
_FAREWELL = 5.0
"""Seconds that the first process, whose end ends the lines, gives the others to hear why."""
_RETRY = 0.2
_GLANCE = 0.1
"""Seconds between two looks whether all are there."""
_SIGNS = 6
"""Signs of life in the time after which a process without any is lost."""


class MeetingError(ValueError):
    """The processes did not come together, or are not of one run."""


class Line:
    """Messages to and from another process, a JSON object a line."""

    def __init__(self, connection: socket.socket, lost_after: float) -> None:
        self._socket, self._lost_after = connection, lost_after
        self._reader = connection.makefile("r", encoding="utf-8")
        self._lock = threading.Lock()
        self._open = True
        self.silent = False
        """True where the other end is there, but has said nothing for that long."""

    def send(self, **message: Any) -> None:
        """To an end that is gone, nothing happens: whoever reads it notices."""
        with contextlib.suppress(OSError), self._lock:
            self._socket.sendall((json.dumps(message) + "\n").encode())

    def read(self, timeout: float) -> dict[str, Any] | None:
        """The next message; None if the other end is gone, silent so long, or not one of us."""
        message: Any = {}  # a sign of life
        try:
            self._socket.settimeout(timeout)
            while message == {}:
                text = self._reader.readline()
                message = json.loads(text) if text.endswith("\n") else None
        except TimeoutError:
            self.silent = True
            return None
        except (OSError, ValueError):
            return None
        return message if isinstance(message, dict) else None

    def follow(self) -> Iterator[dict[str, Any]]:
        """Messages of the other end, until it is gone or silent; it hears that we are there."""
        _start(self._keep_alive)
        while (message := self.read(self._lost_after)) is not None:
            yield message

    def _keep_alive(self) -> None:
        while self._open:
            self.send()
            time.sleep(self._lost_after / _SIGNS)

    def close(self) -> None:
        self._open = False
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._reader.close()
        self._socket.close()


class Host:
    """The end of all lines, in the first process: a thread per line."""

    def __init__(self, port: int, count: int, wait: float, lost_after: float) -> None:
        """wait: seconds that one may be late, here and at `Member.wait_for_all`."""
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        try:
            self._server = socket.create_server(
                ("", port), family=family, backlog=count, dualstack_ipv6=both
            )
        except OSError as error:
            raise MeetingError(
                f"port {port} of the coordinator's address is taken here ({error.strerror}): is "
                "an earlier run still there, or another process 0 (JAX_PROCESS_ID)? Else give "
                "another port"
            ) from error
        self._count, self._wait, self._lost_after = count, wait, lost_after
        self._lines: dict[int, Line] = {}
        self._hellos: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._arrived: dict[str, dict[int, str]] = {}
        self._timers: dict[str, threading.Timer] = {}
        self._gone = threading.Semaphore(0)
        self._ended = False
        self._callers: queue.Queue[tuple[Line, dict[str, Any]]] = queue.Queue()
        _start(self._serve)

    def _serve(self) -> None:
        with self._server:  # closed then: JAX listens on that port next
            problem = self._roll_call()
        for index, line in self._lines.items():
            _start(self._listen, index, line)
        if problem:
            self._end(problem)
            return
        hosts = [self._hellos[index]["host"] for index in range(self._count)]
        for line in self._lines.values():
            line.send(hosts=hosts)

    def _roll_call(self) -> str:
        """Waits for all; says what is wrong with those who came, if anything is."""
        problem = ""
        everyone = set(range(self._count))
        deadline = time.monotonic() + self._wait
        self._server.settimeout(_GLANCE)
        while missing := everyone - self._lines.keys():
            if time.monotonic() > deadline:
                who = f"process{'es' * (len(missing) > 1)} {', '.join(map(str, sorted(missing)))}"
                return problem or (
                    f"{who} of {self._count} did not come within {self._wait:g} s: is the same "
                    "command running on every host?"
                )
            with contextlib.suppress(TimeoutError):
                connection, _ = self._server.accept()
                _start(self._greet, Line(connection, self._lost_after))
            while not self._callers.empty():
                line, hello = self._callers.get()
                if wrong := self._misfit(hello):
                    problem = problem or wrong
                    deadline = min(deadline, time.monotonic() + _FAREWELL)  # the rest hear it, too
                if hello["index"] in self._lines:
                    line.send(end=wrong)
                else:
                    self._lines[hello["index"]], self._hellos[hello["index"]] = line, hello
        return problem or self._difference()

    def _greet(self, line: Line) -> None:
        """Reads who came, in a thread of its own: whoever is silent holds up nobody."""
        hello = line.read(_HELLO)
        if hello is None or not {"index", "host", "count", "values"} <= hello.keys():
            line.close()
        else:
            self._callers.put((line, hello))

    def _misfit(self, hello: dict[str, Any]) -> str:
        """Says what is wrong with one who came, if anything is."""
        index, host, count = hello["index"], hello["host"], hello["count"]
        if index in self._lines:
            hosts = f"{self._hellos[index]['host']} and {host}"
            return f"two processes are process {index}, on {hosts}: JAX_PROCESS_ID must differ"
        if count != self._count:
            return (
                f"process {index} ({host}) was told of {count} processes, the first of "
                f"{self._count}: JAX_NUM_PROCESSES must be the same for all"
            )
        return ""

    def _difference(self) -> str:
        """Names a value that is not the same in all, if there is one."""
        first = self._hellos[0]["values"]
        for index in range(1, self._count):
            other = self._hellos[index]["values"]
            for key in {**first, **other}:
                if first.get(key) != other.get(key):
                    return (
                        f"{self._name(index)} has {key}={other.get(key, 'missing')}, "
                        f"{self._name(0)} {first.get(key, 'missing')}: give all the same command "
                        "and the same code"
                    )
        return ""

    def _listen(self, index: int, line: Line) -> None:
        for message in line.follow():
            if "at" in message:
                self._arrive(message["at"], index, message["word"], message["patient"])
            elif "failed" in message:
                # In a thread of its own: this one is to see its process end.
                _start(self._end, f"{self._name(index)} failed: {message['failed']}")
            elif "bye" in message:
                return
        self._gone.release()
        self._end(_lost(self._name(index), line, self._lost_after))

    def _arrive(self, where: str, index: int, word: str, patient: bool) -> None:
        with self._lock:
            arrived = self._arrived.setdefault(where, {})
            arrived[index] = word
            if not patient and where not in self._timers:
                self._timers[where] = threading.Timer(self._wait, self._late, [where])
                self._timers[where].daemon = True
                self._timers[where].start()
            if len(arrived) < self._count:
                return
            del self._arrived[where]
            if timer := self._timers.pop(where, None):
                timer.cancel()
        words = [arrived[index] for index in range(self._count)]
        for line in self._lines.values():
            line.send(go=where, words=words)

    def _late(self, where: str) -> None:
        with self._lock:
            arrived = self._arrived.get(where)
        if arrived is None:
            return
        missing = [self._name(index) for index in range(self._count) if index not in arrived]
        self._end(
            f"{', '.join(missing)} did not come to {where!r} within {self._wait:g} s of the "
            f"first; {GOES_ON}"
        )

    def _end(self, why: str) -> None:
        """Tells all, the first process last: with it goes JAX's service, and who has not heard
        why by then is ended by that."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
        others = {index: line for index, line in self._lines.items() if index}
        for line in others.values():
            line.send(end=why)
        deadline = time.monotonic() + _FAREWELL
        for _ in others:
            self._gone.acquire(timeout=max(deadline - time.monotonic(), 0.001))
        if 0 in self._lines:
            self._lines[0].send(end=why)

    def _name(self, index: int) -> str:
        return f"process {index} ({self._hellos[index]['host']})"


class Member:
    """A process's own end of its line."""

    def __init__(
        self,
        address: tuple[str, int],
        index: int,
        count: int,
        values: Mapping[str, Any],
        *,
        wait: float,
        lost_after: float,
        ended: Callable[[str], None],
    ) -> None:
        """Comes to the meeting; MeetingError says why there is none.

        Args:
          address: of the first process.
          values: what must be the same in all.
          wait: seconds that one may be late.
          lost_after: seconds after which a process that is silent is lost.
          ended: called, from a thread, with the reason why this process must end.
        """
        name = socket.gethostname()
        hello = {"index": index, "count": count, "host": name, "values": dict(values)}
        deadline = time.monotonic() + wait
        answer = None
        while answer is None:
            try:
                connection = socket.create_connection(address, timeout=_HELLO)
            except OSError as error:
                if time.monotonic() > deadline:
                    raise MeetingError(
                        f"process {index} ({name}): nothing answers at "
                        f"{address[0]}:{address[1]}, where process 0 was to be, for {wait:g} s "
                        f"({error}): is that the first's address (JAX_COORDINATOR_ADDRESS), is "
                        "the same command running there, and is the port open?"
                    ) from error
                time.sleep(_RETRY)
                continue
            self._line = Line(connection, lost_after)
            self._line.send(**hello)
            answer = self._line.read(wait + _HELLO)  # None: of an earlier run, or not started yet
            if answer is None:
                self._line.close()
                if time.monotonic() > deadline:
                    raise MeetingError(
                        f"process {index} ({name}): what answers at {address[0]}:{address[1]} "
                        "is no process 0 that waits: is an earlier run still there?"
                    )
                time.sleep(_RETRY)
        if "end" in answer:
            self._line.close()
            raise MeetingError(answer["end"])
        self.hosts: list[str] = answer["hosts"]
        self._ended, self._lost_after = ended, lost_after
        self._why = ""
        self._open: dict[str, list[str]] = {}
        self._change = threading.Condition()
        self._left = False
        _start(self._listen)

    def _listen(self) -> None:
        why = ""
        for message in self._line.follow():
            if why := message.get("end", ""):
                break
            with self._change:
                self._open[message["go"]] = message["words"]
                self._change.notify_all()
        if self._left:
            return
        first = f"process 0 ({self.hosts[0]})"
        with self._change:
            self._why = why or _lost(first, self._line, self._lost_after)
            self._change.notify_all()
        self._ended(self._why)

    def wait_for_all(self, where: str, word: str, patient: bool = False) -> list[str]:
        """Waits until all have come there; gives each one's word.

        patient: who is there may take any time; else one that is late ends all.
        """
        self._line.send(at=where, word=word, patient=patient)
        with self._change:
            self._change.wait_for(lambda: where in self._open or self._why)
            if where not in self._open:
                raise MeetingError(self._why)
            return self._open.pop(where)

    def ends(self, within: float) -> bool:
        """True if it is told to end within so many seconds."""
        with self._change:
            return bool(self._change.wait_for(lambda: self._why, within))

    def fail(self, why: str) -> None:
        """Tells the others, and waits until they have heard."""
        self._line.send(failed=why)
        self.ends(2 * _FAREWELL)

    def leave(self) -> None:
        """After which it may go without anyone minding; all must."""
        self._left = True
        self._line.send(bye=True)


def _start(target: Callable[..., None], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def _lost(name: str, line: Line, lost_after: float) -> str:
    if line.silent:
        what = f"silent for {lost_after:g} s: it stands still, or its host is down"
    else:
        what = "gone: it was killed, or its host is down"
    return f"{name} is {what}; {GOES_ON}"
