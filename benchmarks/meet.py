"""The meeting of many processes on this machine: light ones, without JAX, that start to meet once all are up.

  python benchmarks/meet.py [--processes=512]

Prints one JSON line: seconds until the last process was up, seconds of the meeting after that, and seconds of the
processor that the first process spent on it.
"""

import argparse
import hmac  # noqa: F401  imported before the fork, as by a process that is up
import json
import os
import socket
import time

from jtasks.distributed import rendezvous


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=512)
    count = parser.parse_args().processes
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    socket.getaddrinfo("127.0.0.1", 80)  # imports the encoding of names
    (begin, begun), (tell_up, up), (tell_met, met) = ((w, r) for r, w in (os.pipe() for _ in range(3)))
    started = time.perf_counter()
    for process in range(1, count):
        if os.fork() == 0:
            os.close(begin)
            os.write(tell_up, b".")
            os.read(begun, 1)  # the end of the pipe
            connection = rendezvous.join(address, process, count, 300, lambda: b"key")
            os.write(tell_met, b"." if connection.process == 0 else b"?")
            os._exit(0)
    read(up, count - 1)
    ready, used = time.perf_counter(), time.process_time()
    os.close(begin)
    connections = rendezvous.accept_peers(address, count, 300, lambda: b"key")
    assert read(met, count - 1) == b"." * (count - 1)
    seconds, cpu = time.perf_counter() - ready, time.process_time() - used
    assert [connection.process for connection in connections] == list(range(1, count))
    for _ in connections:
        os.wait()
    case = {"case": f"meeting of {count} processes", "up_s": round(ready - started, 2), "meeting_s": round(seconds, 2)}
    print(json.dumps(case | {"first_cpu_s": round(cpu, 3)}))


def read(pipe: int, count: int) -> bytes:
    """Read `count` bytes of a pipe."""
    text = b""
    while len(text) < count:
        text += os.read(pipe, count - len(text))
    return text


if __name__ == "__main__":
    main()
