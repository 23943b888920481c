"""Claims about the lock and the checksums of a run's folder."""

import contextlib
import errno
import os

import pytest

from jtasks.errors import ConfigError
from jtasks.run import workdir


def test_a_kill_between_a_file_and_its_checksum_is_no_damage(tmp_path, monkeypatch):
    workdir.record_file(tmp_path, "a.txt", "one")
    workdir.record_file(tmp_path, "b.txt", "kept")
    for killed, content in ((2, "one"), (1, "one"), (3, "two")):  # before the file, before the checksum, after both
        writes = []

        def write(path, content, writes=writes, killed=killed):
            writes.append(path)
            if len(writes) == killed:
                raise KeyboardInterrupt
            path.write_bytes(content.encode() if isinstance(content, str) else content)

        monkeypatch.setattr(workdir, "write_file", write)
        with contextlib.suppress(KeyboardInterrupt):
            workdir.record_file(tmp_path, "a.txt", "two")
        assert (tmp_path / "a.txt").read_text() == content
        workdir.require_files(tmp_path)
    (tmp_path / "a.txt").write_text("three")
    (tmp_path / "b.txt").unlink()
    with pytest.raises(ConfigError, match=r"(?s)a.txt is not what the run wrote\n.*b.txt is missing\n.*from a copy"):
        workdir.require_files(tmp_path)


def test_a_file_system_without_locks_is_told_and_serves(tmp_path, monkeypatch, capfd):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(workdir.fcntl, "flock", flock)
    with workdir.lock(tmp_path / "run"):
        assert (tmp_path / "run" / ".lock").read_text().startswith("process ")
    assert "WARNING: --workdir=" in capfd.readouterr().err
