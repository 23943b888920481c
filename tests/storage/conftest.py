import contextlib

import bucket_servers
import pytest

from jtasks.storage import attempts, bucket, cached, copies


@pytest.fixture(scope="session")
def s3_address():
    with bucket_servers.s3() as address:
        import urllib.request

        request = urllib.request.Request(f"{address}/bucket", method="PUT", headers={"Host": "s3.amazonaws.com"})
        urllib.request.urlopen(request).close()
        yield address


@pytest.fixture(scope="session")
def gcs_address(tmp_path_factory):
    with bucket_servers.gcs(tmp_path_factory.mktemp("gcs") / "root") as address:
        yield address


@contextlib.contextmanager
def forgetful():
    """Forget connections, working copies and what was downloaded before and after the block."""
    for step in (1, 2):
        bucket._filesystem.cache_clear()
        cached._download.cache_clear()
        copies._copies.clear()
        attempts._reached.clear()
        if step == 1:
            yield


@pytest.fixture
def place(tmp_path, monkeypatch):
    """No credentials and no servers but those of the test; caches and copies below its folder."""
    for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in bucket_servers.KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("JTASKS_PATIENCE", "1")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with forgetful():
        yield monkeypatch


@pytest.fixture
def s3(s3_address, place, request):
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    place.setenv("AWS_ENDPOINT_URL", s3_address)
    return f"s3://bucket/{request.node.name}"


@pytest.fixture
def gs(gcs_address, place, request):
    import gcsfs

    gcsfs.GCSFileSystem.clear_instance_cache()
    place.setenv("STORAGE_EMULATOR_HOST", gcs_address)
    return f"gs://bucket/{request.node.name}"


@pytest.fixture(params=["s3", "gs"])
def url(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def gate(url, place, request):
    """A gate before the server of `url`."""
    name = "AWS_ENDPOINT_URL" if url.startswith("s3") else "STORAGE_EMULATOR_HOST"
    opened = bucket_servers.Gate(request.getfixturevalue("s3_address" if url.startswith("s3") else "gcs_address"))
    place.setenv(name, opened.address)
    yield opened
    opened.close()


@pytest.fixture
def gate_of_s3(s3, s3_address, place):
    opened = bucket_servers.Gate(s3_address)
    place.setenv("AWS_ENDPOINT_URL", opened.address)
    yield opened
    opened.close()
