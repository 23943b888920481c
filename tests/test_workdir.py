"""Claims about what a run's folder keeps of its task."""

import pytest

from jtasks import workdir
from jtasks.errors import ConfigError


def test_assets_are_written_whole_and_a_resumed_run_must_have_the_same(tmp_path):
    workdir.record_assets({"a.txt": "ä\n", "b.json": "{}"}, tmp_path, resumed=False)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.json"]
    workdir.record_assets({"a.txt": "ä\n", "new.txt": "x"}, tmp_path, resumed=True)
    assert (tmp_path / "new.txt").read_text() == "x"
    with pytest.raises(ConfigError, match=r"a.txt is not what this config makes: the run so far used another a.txt"):
        workdir.record_assets({"a.txt": "o\n"}, tmp_path, resumed=True)
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "ä\n"
    workdir.record_assets({"a.txt": "o\n"}, tmp_path, resumed=False)  # a run that starts anew replaces them
    assert (tmp_path / "a.txt").read_text() == "o\n"


@pytest.mark.parametrize("name", ["../a.txt", "folder/a.txt", "", "/a.txt"])
def test_an_asset_is_a_file_of_the_run_folder_itself(name, tmp_path):
    with pytest.raises(ConfigError, match="expected a file name without a folder"):
        workdir.record_assets({name: "x"}, tmp_path / "run", resumed=False)
