"""A server on 127.0.0.1 that speaks what huggingface_hub asks of the hub, for folders of files."""

import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import urllib.parse
from collections.abc import Iterator

import pytest


class Hub:
    """Repositories by (kind, name), each a dict of revisions to {path: bytes}; `requests` are those served so far."""

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.gated: set[str] = set()
        self.cut: dict[str, int] = {}  # by file name: bytes after which the connection breaks, once
        self.fail: set[str] = set()  # names of files that answer 500
        self.flip: set[str] = set()  # names of files with a wrong byte
        self.short: set[str] = set()  # names of files without their last byte
        self.hold: set[str] = set()  # names of files that stop in the middle, and set `held`
        self.held = threading.Event()
        self.url = ""

    def add(self, name: str, files: dict[str, bytes], kind: str = "models", *revisions: str) -> str:
        """Add a repository or a commit to it, which `main` and `revisions` then name; returns the commit."""
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.repos.setdefault((kind, name), {}).update(dict.fromkeys((commit, *(revisions or ("main",))), files))
        return commit

    def add_folder(self, name: str, folder: pathlib.Path) -> str:
        """Add a model's folder."""
        return self.add(name, {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npz"})

    def fetched(self) -> list[str]:
        """Names of the files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.requests if method == "GET" and "/resolve/" in path]


def etag(content: bytes) -> str:
    """As on the hub: large files by SHA-256, small ones by Git's hash."""
    if len(content) > 1000:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urllib.parse.unquote(self.path.partition("?")[0])
        self.hub.requests.append((self.command, path, self.headers.get("Range", "")))
        listed = re.fullmatch(r"/api/(models|datasets)/(.+?)(?:/(revision|tree)/(.+))?", path)
        stored = re.fullmatch(r"/(datasets/)?(.+?)/resolve/(.+)", path)
        if listed:
            kind, name, what, revision = listed.groups()
        elif not stored:
            return self.refuse(404, "")
        else:
            kind, name, what, revision = "datasets" if stored[1] else "models", stored[2], "resolve", stored[3]
        revisions = self.hub.repos.get((kind, name))
        if revisions is None:
            return self.refuse(401, "RepoNotFound")
        if self.headers.get("Authorization") != "Bearer secret" and name in self.hub.gated and what == "resolve":
            return self.refuse(403, "GatedRepo")
        revision = revision or "main"
        known = next((r for r in sorted(revisions, key=len)[::-1] if f"{revision}/".startswith(f"{r}/")), None)
        if known is None:
            return self.refuse(404, "RevisionNotFound")
        files = revisions[known]
        commit = next(r for r, other in revisions.items() if other is files and re.fullmatch("[0-9a-f]{40}", r))
        if what == "resolve":
            return self.file(revision.removeprefix(f"{known}/"), files, commit)
        if what == "tree":
            return self.json([self.entry(path, content) for path, content in files.items()])
        return self.json({"id": name, "sha": commit, "siblings": [{"rfilename": path} for path in files], "tags": []})

    def entry(self, path: str, content: bytes) -> dict:
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        large = {"lfs": {"oid": etag(content), "size": len(content), "pointerSize": 134}} if len(content) > 1000 else {}
        return {"type": "file", "path": path, "size": len(content), "oid": git, **large}

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"{code}, says the server")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def json(self, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def file(self, path: str, files: dict[str, bytes], commit: str) -> None:
        if path not in files:
            self.refuse(404, "EntryNotFound")
            return
        if path in self.hub.fail and self.command == "GET":
            self.refuse(500, "")
            return
        content, mark = files[path], etag(files[path])
        if path in self.hub.flip:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if path in self.hub.short and self.command == "GET":
            content = content[:-1]
        start = int(self.headers["Range"].removeprefix("bytes=").partition("-")[0]) if "Range" in self.headers else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{mark}"')
        self.send_header("X-Repo-Commit", commit)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            end = self.hub.cut.pop(path, len(content)) if not start else len(content)
            if path in self.hub.hold:
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self.hub.held.set()
                self.connection.settimeout(60)
                self.connection.recv(1)  # until the other end is gone
                return
            self.wfile.write(content[start:end])
            self.close_connection = end < len(content)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve a Hub until the block ends."""
    hub = Hub()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def patched(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Serve a Hub to this process, with a cache in `folder`, which becomes the working directory."""
    from huggingface_hub import constants

    with serving() as own:
        template = own.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", own.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "token"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.chdir(folder)
        yield own
