"""Processes that meet, as threads of this one: who is missing, differs, fails or goes is named."""

import contextlib
import socket
import threading
import time

import pytest

from adaperceiver_jax.train import meeting as module
from adaperceiver_jax.train.meeting import GOES_ON, Host, Line, MeetingError, Member

SAME = {"config.seed": 0, "--workdir": "runs/a"}


class Meeting:
    """The members that came, and what they were told when they had to end."""

    def __init__(self, count: int, wait: float = 20.0, lost_after: float = 60.0) -> None:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            self.address = free.getsockname()
        self.count, self.wait, self.lost_after = count, wait, lost_after
        self.members: dict[int, Member] = {}
        self.said: dict[int, str] = {}
        self.threads: list[threading.Thread] = []

    def host(self) -> None:
        Host(self.address[1], self.count, self.wait, self.lost_after)

    def come(self, index: int, values: dict = SAME, count: int | None = None) -> None:
        def enter() -> None:
            try:
                self.members[index] = Member(
                    self.address,
                    index,
                    count or self.count,
                    values,
                    wait=self.wait,
                    lost_after=self.lost_after,
                    ended=lambda why: self.said.setdefault(index, why),
                )
            except MeetingError as error:
                self.said[index] = str(error)

        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        self.threads.append(thread)

    def together(self) -> None:
        for thread in self.threads:
            thread.join(30)
            assert not thread.is_alive()

    def heard(self, *indices: int) -> set[str]:
        """What these were told, once all of them were."""
        deadline = time.monotonic() + 30
        while not set(indices) <= self.said.keys():
            assert time.monotonic() < deadline, self.said
            time.sleep(0.01)
        return {self.said[index] for index in indices}


def met(meeting: Meeting) -> Meeting:
    for index in (2, 1):  # before there is anybody to meet
        meeting.come(index)
    meeting.host()
    meeting.come(0)
    meeting.together()
    assert sorted(meeting.members) == [0, 1, 2], meeting.said
    return meeting


@pytest.fixture
def three():
    return met(Meeting(3))


def drop(member: Member) -> None:
    """As when its process is killed: the kernel closes the line."""
    member._line.close()


def name(index: int) -> str:
    return f"process {index} ({socket.gethostname()})"


def test_all_wait_until_the_last_is_there_and_the_place_can_be_met_at_again(three):
    passed = []
    for turn in range(2):
        waiting = [
            threading.Thread(
                target=lambda i=i: passed.append(three.members[i].wait_for_all("save", str(i)))
            )
            for i in (0, 1)
        ]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert len(passed) == 2 * turn
        assert three.members[2].wait_for_all("save", "two") == ["0", "1", "two"]
        for thread in waiting:
            thread.join(10)
        assert len(passed) == 2 * (turn + 1)
    assert passed == [["0", "1", "two"]] * 4
    assert three.said == {}


def test_one_that_is_gone_is_named_to_all_others_and_none_is_left_waiting(three):
    threading.Timer(0.2, drop, [three.members[1]]).start()
    why = f"{name(1)} is gone: it was killed, or its host is down; {GOES_ON}"
    with pytest.raises(MeetingError) as error:
        three.members[2].wait_for_all("save", "")
    assert {str(error.value)} == three.heard(2) == {why}
    drop(three.members[2])
    assert three.heard(0) == {why}


def test_one_that_is_silent_is_named_to_all_and_hears_it_itself(monkeypatch):
    monkeypatch.setattr(module, "_FAREWELL", 0.5)
    meeting = met(Meeting(3, lost_after=1.2))
    time.sleep(2)
    assert not meeting.said
    meeting.members[1]._line._open = False  # as when its process stands still: the line is there
    assert meeting.heard(0, 1, 2) == {
        f"{name(1)} is silent for 1.2 s: it stands still, or its host is down; {GOES_ON}"
    }


def test_one_that_fails_is_named_with_its_error_and_the_first_ends_last(three):
    three.members[2]._line.send(failed="OSError: part-7 cannot be read")
    assert three.members[1].ends(30)
    (why,) = three.heard(1, 2)
    assert why == f"{name(2)} failed: OSError: part-7 cannot be read"
    assert 0 not in three.said  # 1 and 2 have not ended yet
    drop(three.members[1])
    drop(three.members[2])
    assert three.heard(0) == {why}


def test_who_left_is_not_missed(three):
    for member in three.members.values():
        member.leave()
    drop(three.members[1])
    drop(three.members[0])
    time.sleep(0.2)
    assert three.said == {}


def test_without_the_first_nobody_waits_forever():
    meeting = Meeting(2, wait=0.5)
    meeting.come(1)
    meeting.together()
    (why,) = meeting.heard(1)
    assert f"nothing answers at {meeting.address[0]}:{meeting.address[1]}, where process 0" in why
    assert "for 0.5 s" in why
    assert "is that the first's address (JAX_COORDINATOR_ADDRESS)" in why


def test_who_does_not_come_in_time_is_named():
    meeting = Meeting(4, wait=0.5)
    meeting.host()
    for index in (0, 2):
        meeting.come(index)
    meeting.together()
    (why,) = meeting.heard(0, 2)
    assert why.startswith("processes 1, 3 of 4 did not come within 0.5 s")


def test_who_stays_behind_is_named_with_its_host_but_where_the_others_are_patient():
    meeting = met(Meeting(3, wait=1.0))
    for where, patient in (("the end", True), ("save", False)):
        assert meeting.said == {}
        for index in (0, 1):
            meeting.members[index]._line.send(at=where, word="", patient=patient)
        time.sleep(1.2 * patient)
    (why,) = meeting.heard(1, 2)
    assert why == f"{name(2)} did not come to 'save' within 1 s of the first; {GOES_ON}"


@pytest.mark.parametrize(
    ("values", "count", "message"),
    [
        ({**SAME, "config.seed": 1}, 2, "has config.seed=1, process 0 ({host}) 0: give all the"),
        ({"config.seed": 0}, 2, "has --workdir=missing, process 0 ({host}) runs/a"),
        ({**SAME, "config.x": 3}, 2, "has config.x=3, process 0 ({host}) missing"),
        (SAME, 3, "was told of 3 processes, the first of 2: JAX_NUM_PROCESSES"),
    ],
)
def test_one_that_would_do_something_else_is_named_with_the_difference(values, count, message):
    meeting = Meeting(2)
    meeting.host()
    meeting.come(1, values, count)
    meeting.come(0)
    meeting.together()
    (why,) = meeting.heard(0, 1)
    assert why.startswith(f"{name(1)} {message.format(host=socket.gethostname())}")
    assert meeting.members == {}


def test_the_same_number_twice_is_an_error_for_all():
    meeting, other = Meeting(2), Meeting(2)
    other.address = meeting.address
    meeting.host()
    meeting.come(1)
    other.come(1)
    other.threads[0].join(0.5)
    meeting.come(0)
    meeting.together()
    other.together()
    (why,) = {*meeting.heard(0, 1), *other.heard(1)}
    assert why.startswith("two processes are process 1, on")
    assert "JAX_PROCESS_ID" in why


def test_a_taken_port_is_said():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MeetingError, match=f"port {port} .*is taken"):
            Host(port, 2, 1, 60)


def test_strangers_who_connect_keep_nobody_waiting():
    meeting = Meeting(2, wait=4.0)
    meeting.host()
    with contextlib.ExitStack() as stack:
        strangers = [stack.enter_context(socket.create_connection(meeting.address)) for _ in "123"]
        strangers[0].sendall(b"GET / HTTP/1.1\r\n\r\n")  # the others say nothing
        time.sleep(0.5)
        meeting.come(0)
        meeting.come(1)
        meeting.together()
    assert sorted(meeting.members) == [0, 1], meeting.said


def test_a_line_that_was_cut_in_the_middle_is_no_message():
    ours, theirs = socket.socketpair()
    theirs.sendall(b'{"at": "sa')
    theirs.close()
    assert Line(ours, 60).read(60) is None
