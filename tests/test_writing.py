"""Claims about how files of a run are written."""

import pytest

from jtasks.errors import ConfigError
from jtasks.writing import check_name, no_link, write_file, writer


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    write_file(path, "ä\n")
    with pytest.raises(TypeError), writer(path) as file:
        file.writelines([b"half", 3])
    assert path.read_text(encoding="utf-8") == "ä\n"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_link_is_replaced_or_refused_and_never_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 7)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for name in ("a.txt", ".a.txt.7.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_file(tmp_path / "a.txt", b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"
    assert not (tmp_path / "a.txt").is_symlink()
    (tmp_path / "log").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        open(tmp_path / "log", "ab", opener=no_link)  # noqa: SIM115
    assert victim.read_text() == "mine"


def test_what_a_killed_process_left_under_the_same_number_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.setattr("os.getpid", lambda: 1)
    (tmp_path / ".a.txt.1.tmp").write_text("half")
    write_file(tmp_path / "a.txt", "whole")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "..\\a", "a\nb", "a\x1b[31m", "a\0", None, 3])
def test_a_name_that_is_no_file_of_the_folder_is_refused(name):
    with pytest.raises(ConfigError, match=r"show_fn of the task returned the name .*without a folder"):
        check_name(name, "show_fn of the task")


def test_a_name_of_the_run_itself_is_refused():
    check_name("labels.json", "assets()", ("config.json",))
    with pytest.raises(ConfigError, match=r"'config.json', which is a file of the run itself"):
        check_name("config.json", "assets()", ("config.json",))
