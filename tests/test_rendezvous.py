"""Processes find each other, or say who is missing."""

import concurrent.futures
import json
import socket
import time

import pytest

from jtasks import rendezvous
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


def joining(port: int, process: int, processes: int, seconds: float = 5):
    return rendezvous.join, f"localhost:{port}", process, processes, seconds


def test_all_meet_in_any_order_and_know_each_other_and_strangers_are_ignored():
    port = free_port()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        late = [pool.submit(*joining(port, i, 4)) for i in (3, 1)]
        time.sleep(0.3)
        first = pool.submit(rendezvous.gather, port, 4, 5)
        time.sleep(0.3)
        for words in (b"GET / HTTP/1.1\n", b"[]\n", b'{"process": 9, "processes": 4, "host": "x"}\n', b""):
            with socket.create_connection(("localhost", port)) as stranger:
                stranger.sendall(words)
        second = rendezvous.join(f"localhost:{port}", 2, 4, 5)
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
    found = meet((rendezvous.gather, port, 4, 0.7), joining(port, 2, 4, 0.7))
    for error in found:
        assert isinstance(error, TrainingError)
        assert str(error).startswith("processes 1 and 3 of 4 never came within 0.7 s")


def test_one_that_came_and_went_is_missing():
    port = free_port()

    def visit_then_join() -> None:
        time.sleep(0.2)
        with socket.create_connection(("localhost", port)) as sock:
            sock.sendall(json.dumps({"process": 1, "processes": 3, "host": "x"}).encode() + b"\n")
        rendezvous.join(f"localhost:{port}", 2, 3, 1.5)

    first, second = meet((rendezvous.gather, port, 3, 1.5), (visit_then_join,))
    assert str(first) == str(second)
    assert str(first).startswith("process 1 of 3 never came")


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_a_coordinator_that_does_not_answer_is_told_in_time(host):
    begun = time.monotonic()
    with pytest.raises(TrainingError, match=rf"coordinator at {host}:\d+ did not answer within 0.5 s"):
        rendezvous.join(f"{host}:{free_port()}", 1, 2, 0.5)
    assert time.monotonic() - begun < 5


def test_a_server_of_something_else_is_not_taken_for_the_coordinator():
    with (
        socket.create_server(("localhost", 0)) as server,
        pytest.raises(TrainingError, match="process 0 did not begin the run"),
    ):
        rendezvous.join(f"localhost:{server.getsockname()[1]}", 1, 2, 0.3)


def test_different_counts_and_equal_numbers_are_refused_on_both_sides():
    port = free_port()
    for error in meet((rendezvous.gather, port, 2, 5), joining(port, 1, 3)):
        assert isinstance(error, ConfigError)
        assert "was told of 3 processes, process 0 of 2" in str(error)
    for error in meet((rendezvous.gather, port, 3, 5), joining(port, 1, 3), joining(port, 1, 3)):
        assert isinstance(error, ConfigError)
        assert "two processes say that they are process 1" in str(error)


def test_a_port_in_use_and_an_address_without_one_are_told():
    with socket.create_server(("", 0)) as taken, pytest.raises(TrainingError, match="cannot listen on port"):
        rendezvous.gather(taken.getsockname()[1], 2, 0.3)
    for wrong in ("node1", "node1:", ":80", "node1:http", "node1:70000"):
        with pytest.raises(ConfigError, match="must be HOST:PORT"):
            rendezvous.address(wrong)
