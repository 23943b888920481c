"""Processes find each other, or say who is missing."""

import concurrent.futures
import contextlib
import queue
import socket
import threading
import time

import pytest

from jtasks.distributed import connections, monitor, rendezvous
from jtasks.errors import ConfigError, TrainingError


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def meet(*calls) -> list:
    """The results or errors of calls made at the same time."""
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        futures = [pool.submit(*call) for call in calls]
        return [future.exception() or future.result() for future in futures]


KEY = b"what all members know"


def joining(port: int, process: int, processes: int, seconds: float = 5, key: bytes = KEY, job: str = ""):
    return rendezvous.join, f"localhost:{port}", process, processes, seconds, lambda: key, "the key", job


def gathering(port: int, processes: int, seconds: float = 5, job: str = ""):
    return rendezvous.accept_peers, f"localhost:{port}", processes, seconds, lambda: KEY, "the key", job


def test_all_meet_in_any_order_and_know_each_other_and_strangers_are_ignored():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        late = [pool.submit(*joining(port, i, 4)) for i in (3, 1)]
        time.sleep(0.3)
        first = pool.submit(*gathering(port, 4))
        time.sleep(0.3)
        hello = b'{"process": 1, "processes": 4, "host": "x", "job": "", "proof": "%s"}\n'
        deep = b"[" * 50_000 + b"\n"
        for words in (b"GET / HTTP/1.1\n", b"[]\n", hello, hello % b"00", b'{"failed": 1}\n', deep, b"x" * 10**6, b""):
            with socket.create_connection(("localhost", port)) as stranger, contextlib.suppress(OSError):
                stranger.sendall(words)
        second = joining(port, 2, 4)[0](*joining(port, 2, 4)[1:])
        connections = first.result()
    assert [connection.process for connection in connections] == [1, 2, 3]
    others = [second, *(future.result() for future in late)]
    assert all(other.host == socket.gethostname() for other in others)
    connections[1].send({"value": 7})
    assert second.receive() == [{"value": 7}]
    with socket.create_server(("localhost", port)):  # jax.distributed listens on the same port
        pass
    for connection in (*connections, *others):
        connection.sock.close()


def test_who_never_came_is_named_to_all_who_did():
    port = free_port()
    found = meet(gathering(port, 4, 0.7), joining(port, 2, 4, 0.7))
    for error in found:
        assert isinstance(error, TrainingError)
        assert str(error).startswith("processes 1 and 3 of 4 never came within 0.7 s")


def test_one_that_began_to_wait_earlier_than_the_first_process_hears_from_it_who_is_missing(monkeypatch):
    monkeypatch.setattr(rendezvous, "ANSWER_SECONDS", 0.5)
    port = free_port()
    for error in meet(gathering(port, 3, 2.5), joining(port, 2, 3, 0.5)):
        assert isinstance(error, TrainingError)
        assert str(error).startswith("process 1 of 3 never came within 2.5 s")


def test_one_that_came_and_went_is_missing():
    port = free_port()

    def visit_then_join() -> None:
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as sock:
            connection = connections.Connection(sock)
            (challenge,) = connection.receive()
            proof = rendezvous.proof(KEY, challenge["challenge"], 1, 3, "x", "")
            connection.send({"process": 1, "processes": 3, "host": "x", "job": "", "proof": proof})
        join, *arguments = joining(port, 2, 3, 1.5)
        join(*arguments)

    first, second = meet(gathering(port, 3, 1.5), (visit_then_join,))
    assert str(first) == str(second)
    assert str(first).startswith("process 1 of 3 never came")


def test_the_work_of_the_first_process_grows_with_the_number_of_processes_not_with_its_square(monkeypatch):
    calls = []
    closed = rendezvous.is_closed
    monkeypatch.setattr(rendezvous, "is_closed", lambda sock: calls.append(sock) or closed(sock))
    port, count = free_port(), 64
    first, *others = meet(gathering(port, count, 30), *[joining(port, i, count, 30) for i in range(1, count)])
    assert [connection.process for connection in first] == list(range(1, count))
    assert len(calls) <= 2 * count  # one look at each, after the last one came
    for connection in (*first, *others):
        connection.sock.close()


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_a_coordinator_that_does_not_answer_is_told_in_time(host):
    begun = time.monotonic()
    with pytest.raises(TrainingError, match=rf"coordinator at {host}:\d+ did not answer within 0.5 s"):
        rendezvous.join(f"{host}:{free_port()}", 1, 2, 0.5, lambda: KEY)
    assert time.monotonic() - begun < 5


def test_a_server_of_something_else_is_not_taken_for_the_coordinator():
    with (
        socket.create_server(("localhost", 0)) as server,
        pytest.raises(TrainingError, match="process 0 did not begin the run"),
    ):
        rendezvous.join(f"localhost:{server.getsockname()[1]}", 1, 2, 0.3, lambda: KEY)


def test_different_counts_and_equal_numbers_are_refused_on_both_sides():
    port = free_port()
    for error in meet(gathering(port, 2), joining(port, 1, 3)):
        assert isinstance(error, ConfigError)
        assert "was started with 3 processes, process 0 with 2" in str(error)
    for error in meet(gathering(port, 3), joining(port, 1, 3), joining(port, 1, 3)):
        assert isinstance(error, ConfigError)
        assert "two processes say that they are process 1" in str(error)


def fail():
    raise AssertionError("a process that has no port must not write the run's token")


def test_a_port_in_use_and_an_address_without_one_are_told():
    with socket.create_server(("", 0)) as taken, pytest.raises(TrainingError, match="cannot listen on port"):
        rendezvous.accept_peers(f"localhost:{taken.getsockname()[1]}", 2, 0.3, fail)
    for wrong in ("node1", "node1:", ":80", "node1:http", "node1:70000"):
        with pytest.raises(ConfigError, match="must be HOST:PORT"):
            connections.address(wrong)


def test_who_lacks_the_key_is_named_on_both_sides_and_a_late_key_is_waited_for(monkeypatch):
    monkeypatch.setattr(rendezvous, "SEE_SECONDS", 1.0)
    port = free_port()
    for error in meet(gathering(port, 2, 3), joining(port, 1, 2, 30, key=b"another folder's")):
        assert isinstance(error, ConfigError)
        assert f"process 1 on {socket.gethostname()}" in str(error)
    keys = iter([b"", b""])  # as a file that a network file system shows late
    port = free_port()
    (first,), second = meet(gathering(port, 2), (*joining(port, 1, 2)[:5], lambda: next(keys, KEY)))
    assert (first.process, second.process) == (1, 0)
    first.sock.close(), second.sock.close()


def claim_then_join(port: int, process: int, processes: int):
    """What a process gets that joins after a stranger has claimed to be each of the members."""
    time.sleep(0.2)
    for claimed in range(1, processes):
        hello = {"process": claimed, "processes": processes, "host": "x", "job": "", "proof": "00"}
        with socket.create_connection(("localhost", port)) as sock:
            connections.Connection(sock).send(hello)
    time.sleep(1)
    join, *arguments = joining(port, process, processes)
    return join(*arguments)


def test_a_stranger_who_claims_to_be_a_member_ends_nobody_s_wait(monkeypatch, capsys):
    monkeypatch.setattr(rendezvous, "SEE_SECONDS", 0.4)
    port = free_port()
    (first,), second = meet(gathering(port, 2), (claim_then_join, port, 1, 2))
    assert (first.process, second.process) == (1, 0)
    first.sock.close(), second.sock.close()
    port = free_port()
    for error in meet(gathering(port, 3, 3), (claim_then_join, port, 2, 3)):
        assert isinstance(error, ConfigError)
        assert str(error).startswith("process 1 of 3 never came within 3 s. process 1 on x: does not see")
    said = capsys.readouterr().err
    assert said.count("WARNING: process 1 on x: does not see what process 0 wrote there: the key; waiting on") == 1
    assert said.count("WARNING: process 1 on x, process 2 on x: does not see") == 1


def test_processes_of_two_jobs_on_one_port_do_not_mix(monkeypatch):
    monkeypatch.setattr(rendezvous, "SEE_SECONDS", 1.0)
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(*gathering(port, 2, 30, "job 41 step 1"))
        stranger = pool.submit(*joining(port, 1, 2, 30, job="job 42 step 0")).exception()
        assert isinstance(stranger, TrainingError)
        assert f"another run has the port of localhost:{port}, not job 42 step 0" in str(stranger)
        join, *arguments = joining(port, 1, 2, 30, job="job 41 step 1")
        second = join(*arguments)
        (member,) = first.result()  # unharmed, though the stranger has the key and came first
    member.sock.close(), second.sock.close()


def test_more_strangers_than_there_is_room_for_keep_no_member_out(monkeypatch):
    monkeypatch.setattr(rendezvous, "STRANGERS", 4)
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.ExitStack() as stack:
        first = pool.submit(*gathering(port, 2, 30))
        for _ in range(20):
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    stack.enter_context(socket.create_connection(("localhost", port), timeout=5))
                    break
        join, *arguments = joining(port, 1, 2, 30)
        second = join(*arguments)
        (member,) = first.result()
    member.sock.close(), second.sock.close()


@pytest.fixture
def pair():
    """A connection to watch and the other end of it; at the end the thread that watches has ended."""
    near, far = (connections.Connection(sock) for sock in socket.socketpair())
    yield near, far
    near.done = True
    far.sock.close()
    for thread in threading.enumerate():
        if thread.name == "processes":
            thread.join(timeout=60)
    near.sock.close()


@pytest.mark.parametrize("junk", [{"failed": 1}, {"failed": "x"}, {"lost": [2]}, {"done": 3}, {}, {"other": 1}])
def test_messages_of_wrong_types_neither_end_the_watch_nor_count(junk, pair, monkeypatch):
    near, far = pair
    monkeypatch.setattr(monitor, "GRACE_SECONDS", 0)
    ends = []
    monkeypatch.setattr(monitor.PeerMonitor, "_end", lambda self, text, code: ends.append(code))
    link = monitor.PeerMonitor(1, [near])
    far.send(junk)
    for value in (True, 7):  # decisions are truth values too
        far.send({"value": value})
        assert link.hear() == value
    assert ends == ([1] if junk == {"failed": "x"} else [])


def test_another_process_s_failure_is_never_a_success_and_its_text_is_fit_for_a_terminal(pair, monkeypatch):
    near, far = pair
    ends: queue.Queue = queue.Queue()
    monkeypatch.setattr(monitor, "GRACE_SECONDS", 0)
    monkeypatch.setattr(monitor.PeerMonitor, "_end", lambda self, text, code: ends.put((text, code)))
    monitor.PeerMonitor(1, [near])
    for code in (0, 256, -1, "0", None, True):
        far.send({"failed": "a\x1b[2J", "process": 1, "code": code})
        assert ends.get(timeout=60) == ("process 1 failed: a\\x1b[2J", 1)
    far.send({"failed": "a", "process": 1, "code": 2})
    assert ends.get(timeout=60) == ("process 1 failed: a", 2)


def test_the_port_is_open_at_the_coordinators_address_alone_where_that_is_this_machines():
    assert connections.interface("127.0.0.1") == "127.0.0.1"
    assert connections.interface("localhost") == "127.0.0.1"
    assert connections.interface("192.0.2.1") == ""  # RFC 5737: nobody's
    assert connections.interface("no-such-host.invalid") == ""
