"""Claims about objects in buckets, on real servers."""

import concurrent.futures
import threading

import bucket_servers
import pytest

from jtasks.errors import ConfigError, StorageError
from jtasks.storage import bucket


@pytest.mark.parametrize("name", ["plain", "a b[1]", "x#y?z", "ü%20+&", "*"])
def test_an_object_of_any_name_is_written_listed_read_and_removed(url, name):
    folder = f"{url}/{name}"
    assert bucket.read(f"{folder}/one") is None
    bucket.write(f"{folder}/one", b"1")
    bucket.write(f"{folder}/deep/{name}", b"22")
    bucket.write(f"{url}/{name}beside", b"3")
    assert {key: found.size for key, found in bucket.listing(folder).items()} == {"one": 1, f"deep/{name}": 2}
    assert bucket.listing(folder, is_folder=True) == bucket.listing(folder)
    assert not bucket.listing(f"{folder}/one", is_folder=True)
    assert bucket.read(f"{folder}/one") == b"1"
    bucket.remove(f"{folder}/one")
    bucket.remove(f"{folder}/one")
    assert list(bucket.listing(folder)) == [f"deep/{name}"]
    assert [found.size for found in bucket.listing(f"{folder}/deep/{name}").values()] == [2]


def test_an_empty_folder_takes_one_request_where_no_file_of_its_name_is_meant(s3, gate_of_s3):
    assert bucket.listing(f"{s3}/empty", is_folder=True) == {}
    assert len(gate_of_s3.requests) == 1
    assert bucket.listing(f"{s3}/empty") == {}
    assert len(gate_of_s3.requests) > 2


def test_of_many_that_create_an_object_one_succeeds(url):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda i: bucket.create(f"{url}/lock", str(i).encode()), range(8)))
    assert sum(created) == 1
    assert bucket.read(f"{url}/lock") == str(created.index(True)).encode()
    assert bucket.create(f"{url}/lock", str(created.index(True)).encode())  # whose answer was lost


def test_files_arrive_whole_and_a_changed_object_has_another_version(url, tmp_path):
    (tmp_path / "in [1]").write_bytes(bytes(range(256)) * 4096)
    bucket.upload(tmp_path / "in [1]", f"{url}/a")
    bucket.download(f"{url}/a", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "in [1]").read_bytes()
    before = bucket.listing(url)["a"]
    bucket.write(f"{url}/a", b"0" * before.size)
    assert bucket.listing(url)["a"].version != before.version
    with pytest.raises(FileNotFoundError):
        bucket.download(f"{url}/none", tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["in [1]", "out"]


def test_a_bucket_that_does_not_exist_is_named(s3, gs, tmp_path):
    (tmp_path / "file").touch()
    for act in (
        lambda: bucket.write("s3://none/a", b""),
        lambda: bucket.listing("s3://none/a"),
        lambda: bucket.upload(tmp_path / "file", "gs://none/a"),
    ):
        with pytest.raises(ConfigError, match=r"://none/a.*no such bucket"):
            act()


def test_a_server_that_comes_back_is_waited_for_and_one_that_does_not_is_an_error(s3, s3_address, place, capsys):
    import s3fs

    wire = bucket_servers.Wire(s3_address)
    place.setenv("AWS_ENDPOINT_URL", wire.address)
    place.setenv("JTASKS_PATIENCE", "30")
    bucket._filesystem.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()
    wire.delay = 0.2
    bucket.write(f"{s3}/a", b"slow")
    wire.delay, wire.cut = 0.0, True
    threading.Timer(1.0, lambda: setattr(wire, "cut", False)).start()
    assert bucket.read(f"{s3}/a") == b"slow"
    assert capsys.readouterr().err.count("does not answer") == 1
    wire.close()
    place.setenv("JTASKS_PATIENCE", "0.5")
    with pytest.raises(
        StorageError, match=r"could not be written for 0 s .* run the same command again once the store answers"
    ):
        bucket.write(f"{s3}/a", b"lost")


@pytest.mark.parametrize("text", ["s3://", "s3:///run", "gs://bucket/../other"])
def test_an_address_without_a_bucket_or_with_dots_is_refused(text):
    with pytest.raises(ConfigError, match="BUCKET/FOLDER"):
        bucket.tidy(text)
