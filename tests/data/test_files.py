"""Claims about finding, downloading and reading files."""

import concurrent.futures
import gzip
import hashlib
import http.server
import io
import os
import pathlib
import socket
import tarfile
import threading

import numpy as np
import pytest

from jtasks.data import files
from jtasks.errors import DataError

BODY = b"an archive of bytes" * 1000
HASH = "md5:" + hashlib.md5(BODY).hexdigest()


class Server(http.server.ThreadingHTTPServer):
    """Serves /good/ whole, /short/ cut off in the body, /wrong/ altered, and 404 for the rest."""

    daemon_threads = False  # so that closing waits for them


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        place = self.path.split("/")[1]
        if place not in ("good", "short", "wrong"):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write({"good": BODY, "short": BODY[:5000], "wrong": BODY[::-1]}[place])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}/"
        finally:
            running.shutdown()
            thread.join()


@pytest.fixture
def refused(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as bound:  # bound but not listening: nobody else gets the port, and it refuses
        bound.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/"


def everything(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_data_folder_prefers_the_config_then_the_variable_then_the_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("JTASKS_DATA", "/variable")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert files.data_folder("/config") == pathlib.Path("/config")
    assert files.data_folder(None) == pathlib.Path("/variable")
    monkeypatch.delenv("JTASKS_DATA")
    assert files.data_folder(None) == pathlib.Path("/cache/jtasks")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.data_folder(None) == tmp_path / ".cache" / "jtasks"
    assert files.data_folder("~/data") == tmp_path / "data"


def test_find_prefers_earlier_folders_then_earlier_names(tmp_path):
    for place in ("one/b", "two/a", "two/b"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).touch()
    assert files.find("ab", (tmp_path / "one", tmp_path / "two")) == tmp_path / "one" / "b"
    assert files.find("ab", [tmp_path / "two"]) == tmp_path / "two" / "a"
    assert files.find("c", [tmp_path / "two"]) is None


def test_fetch_brings_the_file_readable_and_says_nothing_on_stdout(server, tmp_path, capfd):
    path = files.fetch("x.bin", HASH, [server + "good/"], tmp_path / "new" / "folder")
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o777 == 0o644
    assert everything(tmp_path) == [os.path.join("new", "folder", "x.bin")]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("place", ["wrong", "short", "absent"])
def test_a_failed_download_leaves_nothing_behind_and_says_why(server, tmp_path, place):
    with pytest.raises(DataError) as caught:
        files.fetch("x.bin", HASH, [f"{server}{place}/"], tmp_path, ("x", "x.bin"), (tmp_path, tmp_path / "sub"))
    assert everything(tmp_path) == []
    message = str(caught.value)
    reason = {"wrong": "hash", "short": "incomplete", "absent": "404"}[place]
    assert reason in message.lower()
    for part in ("looked for: x, x.bin", f"in: {tmp_path}, {tmp_path / 'sub'}", f"{server}{place}/x.bin"):
        assert part in message
    for way_out in (f"put the file into {tmp_path}", "config.data.dir", "$JTASKS_DATA", "network"):
        assert way_out in message


def test_a_refused_connection_is_a_data_error(refused, tmp_path):
    with pytest.raises(DataError, match="refused"):
        files.fetch("x.bin", HASH, [refused], tmp_path)
    assert everything(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_a_data_error(server, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot find or download x\.bin"):
        files.fetch("x.bin", HASH, [server + "good/"], tmp_path / "file" / "folder")


def test_mirrors_are_tried_in_order_until_one_serves_the_right_bytes(server, refused, tmp_path):
    mirrors = [refused, server + "absent/", server + "short/", server + "wrong/", server + "good/"]
    assert files.fetch("x.bin", HASH, mirrors, tmp_path).read_bytes() == BODY
    assert everything(tmp_path) == ["x.bin"]


def test_fetches_at_once_all_get_the_whole_file(server, tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(files.fetch, "x.bin", HASH, [server + "good/"], tmp_path) for _ in range(8)]
    assert {task.result().read_bytes() for task in tasks} == {BODY}
    assert everything(tmp_path) == ["x.bin"]


def archive(path: pathlib.Path, members: list[tuple[tarfile.TarInfo, bytes]]) -> pathlib.Path:
    with tarfile.open(path, "w:gz") as tar:
        for info, data in members:
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_members_are_read_by_name_in_whatever_order_and_spelling(tmp_path):
    members = [(tarfile.TarInfo("./d/b"), b"B"), (tarfile.TarInfo("d/a"), b"A"), (tarfile.TarInfo("d/c"), b"C")]
    assert files.read_members(archive(tmp_path / "x.tar.gz", members), ["d/a", "d/b"]) == {"d/a": b"A", "d/b": b"B"}
    assert everything(tmp_path) == ["x.tar.gz"]


@pytest.mark.parametrize("name", ["../evil", "d/../../evil", "/etc/evil"])
def test_members_outside_the_folder_are_refused(tmp_path, name):
    path = archive(tmp_path / "x.tar.gz", [(tarfile.TarInfo("d/a"), b"A"), (tarfile.TarInfo(name), b"evil")])
    with pytest.raises(DataError) as caught:
        files.read_members(path, ["d/a"])
    assert str(path) in str(caught.value)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path, kind):
    info = tarfile.TarInfo("d/a")
    info.type, info.linkname = kind, "/etc/passwd"
    with pytest.raises(DataError, match="'d/a' is a link, a device or sparse"):
        files.read_members(archive(tmp_path / "x.tar.gz", [(info, b"")]), ["d/a"])


def test_a_damaged_or_incomplete_archive_is_named(tmp_path):
    noise = np.random.default_rng(0).bytes(100_000)
    path = archive(tmp_path / "x.tar.gz", [(tarfile.TarInfo("d/a"), noise)])
    with pytest.raises(DataError, match=r"x\.tar\.gz lacks d/b"):
        files.read_members(path, ["d/a", "d/b"])
    whole = path.read_bytes()
    for damaged in (whole[:50_000], whole[:50_000] + b"\0" * 100 + whole[50_100:], b"", b"<html>"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"x\.tar\.gz is truncated or corrupt"):
            files.read_members(path, ["d/a"])


def test_what_unfolds_to_too_much_is_refused(tmp_path):
    path = archive(tmp_path / "x.tar.gz", [(tarfile.TarInfo("d/a"), bytes(5_000_000))])
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match=r"x\.tar\.gz unpacks to more than 1,000,000 bytes"):
        files.read_members(path, ["d/a"], 1_000_000)
    with pytest.raises(DataError, match="unpacks to more than"):
        files.gunzip(gzip.compress(bytes(2_000)) + gzip.compress(bytes(2_000)), path, 3_000)
    with pytest.raises(DataError, match=r"holds [0-9,]+ bytes; expected at most 99"):
        files.read(path, 99)


@pytest.mark.parametrize("version", ["0.0", "1.0", "wrong"])
def test_sparse_members_are_refused(tmp_path, version):
    data = b"1\n0\n3\n" + b"\0" * 505 + b"abc"
    info = tarfile.TarInfo("d/a")
    info.size = len(data)
    info.pax_headers = {
        "GNU.sparse.major": version[0],
        "GNU.sparse.minor": "0",
        "GNU.sparse.name": "d/a",
        "GNU.sparse.realsize": "7000000000",
        "GNU.sparse.size": "7000000000",
        "GNU.sparse.map": "0,x" if version == "wrong" else "0,3",
    }
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info, io.BytesIO(data))
    with pytest.raises(DataError, match=r"x\.tar\.gz(: member .*or sparse| is truncated or corrupt)"):
        files.read_members(tmp_path / "x.tar.gz", ["d/a"])


def test_a_download_has_a_bound(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LIMIT", 5_000)
    with pytest.raises(DataError, match="more than 5,000 bytes"):
        files.fetch("x.bin", HASH, [server + "good/"], tmp_path)
    assert everything(tmp_path) == []


def test_a_pipe_is_no_file_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x")
    for read in (files.read, files.array):
        with pytest.raises(DataError, match=r"x.*not a regular file"):
            read(tmp_path / "x")


class Harmful:
    def __reduce__(self):
        return (pathlib.Path("unpickled-by-mistake").touch, ())


def npy(header: bytes) -> bytes:
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x93NUMPY",
        b"<html>",
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000000), }\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }\n"),
        npy(b"{'descr': '<f4', 'fortran_order': False, 'shape': 3, }\n"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n" + b"\1" * 8),
        npy(b"{'descr': '|V8', 'fortran_order': False, 'shape': (1,), }\n") + b"\1" * 8,
        npy(b"[" * 5000),
        npy(b"__import__('os').system('touch unpickled-by-mistake')\n"),
    ],
)
def test_an_array_that_is_none_is_a_data_error(tmp_path, content):
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.npy .*expected (an|one)? ?(array of )?numbers"):
        files.array(tmp_path / "x.npy")


def test_neither_archives_of_arrays_nor_objects_are_arrays(tmp_path):
    np.savez(tmp_path / "x.npz", np.ones(3))
    np.save(tmp_path / "x.npy", np.array([Harmful()]), allow_pickle=True)
    for name in ("x.npz", "x.npy"):
        with pytest.raises(DataError, match="cannot be read"):
            files.array(tmp_path / name)
    assert not pathlib.Path("unpickled-by-mistake").exists()
    np.save(tmp_path / "y.npy", np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(files.array(tmp_path / "y.npy"), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("name", ["", "..", ".", "../x", "/x", "a/b", "a\\b", "a\nb", "a\x1b[2J", "a\0", None, 3])
def test_a_plain_name_is_that_of_a_file_in_its_folder(name):
    assert not files.is_plain(name)
    assert files.is_plain("v_1.é-x y")
