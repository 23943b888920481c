"""Claims about workdirs and data in buckets."""

import json
import os
import pathlib
import re
import shutil
import signal
import time

import bucket_servers
import numpy as np
import pytest

import jtasks
from jtasks import storage
from jtasks.config import freeze
from jtasks.data import fingerprint
from jtasks.distributed import processes
from jtasks.errors import CheckpointError, ConfigError, DataError, StorageError
from jtasks.run import checkpoint, checkpoint_files, checkpoint_writer, job, loop, page, records, watch
from jtasks.run.workdir import lock
from jtasks.storage import bucket, cached, copies, working_copy
from jtasks.storage import lease as leases

LINEAR = {
    "task": str(pathlib.Path(__file__).parents[1] / "data_tasks/linear.py"),
    "batch_size": 8,
    "show_count": 0,
    "log_every": 2,
    "eval_every": 4,
    "save_every": 4,
    "data": {"threads": 1},
    "model": {"width": 3},
    "optim": {"name": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0.0},
}


def content(url):
    return {name: bucket.read(f"{url}/{name}") for name in bucket.listing(url)}


def measured(path):
    return [{k: v for k, v in row.items() if not records._VOLATILE.fullmatch(k)} for row in records.read(path)]


def test_a_copy_sends_what_changed_in_order_and_removes_what_was_deleted(url, monkeypatch):
    bucket.write(f"{url}/run/config.json", b"{}")
    bucket.write(f"{url}/run/report.html", b"large")
    folder = storage.open_copy(f"{url}/run/")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json"]
    sent, upload = [], bucket.upload
    monkeypatch.setattr(bucket, "upload", lambda *a: (sent.append(a[1].rpartition("/")[2]), upload(*a)))
    (folder / "show").mkdir()
    for i, name in enumerate(["z", "show/ä [1]#.png", "a", ".b.1.tmp", "checkpoints"]):
        (folder / name).write_text(name)
        os.utime(folder / name, ns=(i, i))
    (folder / "link").symlink_to("/etc/passwd")
    (folder / "config.json").unlink()
    storage.push(folder)
    storage.push(folder)
    assert sent == ["z", "ä [1]#.png", "a"]
    assert sorted(bucket.listing(f"{url}/run")) == ["a", "report.html", "show/ä [1]#.png", "z"]
    bucket.write(f"{url}/run/a", b"of another process")
    bucket.remove(f"{url}/run/z")
    storage.pull(folder)
    assert (folder / "a").read_text() == "of another process"
    assert not (folder / "z").exists()
    assert storage.shown(f"{folder}/a") == f"{url}/run/a" == storage.url_of(folder / "a")


def test_a_name_that_leaves_the_folder_is_not_downloaded(s3):
    import boto3

    client = boto3.client("s3")
    for key in ("../out", "a/../../out", "a//b", "fine", "", "folder/"):
        client.put_object(Bucket="bucket", Key=f"{s3.removeprefix('s3://bucket/')}/{key}", Body=b"1")
    folder = storage.open_copy(s3)
    assert [path.name for path in folder.rglob("*")] == ["fine"]
    assert [path.name for path in storage.local(f"{s3}/").iterdir()] == ["fine"]  # not the object that stands for it
    assert not storage.open_copy(f"{s3}/folder").exists()


def test_a_checkpoint_counts_once_its_checksums_are_there(url):
    folder = storage.open_copy(f"{url}/run") / "checkpoints"
    bucket.write(f"{url}/run/checkpoints/4/d/half", b"of a killed run")
    with lock(folder.parent):
        assert not bucket.listing(f"{url}/run/checkpoints")
        with checkpoint_writer.Checkpoints(folder) as checkpoints:
            state = {"w": jtasks_array(8)}
            for step in (4, 8):
                checkpoints.save(state, step, [4] if step == 8 else [])
                checkpoints.wait()
        assert checkpoint_files.saved_steps(folder) == [8]
        assert [path.name for path in (folder / "8").iterdir()] == ["checksums.json"]  # the rest is in the bucket only
        assert {name.partition("/")[0] for name in bucket.listing(f"{url}/run/checkpoints")} == {"8"}
    copies._copies.clear()
    folder = storage.open_copy(f"{url}/run") / "checkpoints"
    assert checkpoint_files.newest(folder, print) == 8
    np.testing.assert_array_equal(checkpoint.restore(folder / "8", state)["w"], state["w"])
    other = working_copy.Copy(f"{url}/run", working_copy.new_folder() / "run")  # of the run that trains on
    other.pull()
    mine, copies._copies[f"{url}/run"] = copies._copies[f"{url}/run"], other
    with checkpoint_writer.Checkpoints(other.path / "checkpoints") as checkpoints:
        checkpoints.save(state, 12, [8])
    copies._copies[f"{url}/run"] = mine
    assert checkpoint_files.newest(folder, print) == 12
    part = next(name for name in bucket.listing(f"{url}/run/checkpoints/12") if name.startswith("ocdbt.process_0/d/"))
    bucket.write(f"{url}/run/checkpoints/12/{part}", b"changed")
    copies._copies.clear()
    with pytest.raises(CheckpointError, match="has changed"):
        checkpoint_files.newest(storage.open_copy(f"{url}/run") / "checkpoints", print)


def jtasks_array(n):
    import jax.numpy as jnp

    return jnp.arange(float(n))


def test_a_run_through_an_outage_keeps_its_checkpoint_resumes_and_ends_like_a_local_one(
    s3, s3_address, place, tmp_path, capsys
):
    import s3fs

    wire = bucket_servers.Wire(s3_address)
    place.setenv("AWS_ENDPOINT_URL", wire.address)
    place.setenv("JTASKS_PATIENCE", "0.3")
    s3fs.S3FileSystem.clear_instance_cache()
    url = f"{s3}/a b[1]#"
    publish = working_copy.Copy.publish

    def cut_in_the_middle(self, folder, **options):
        wire.cut = int(folder.name) >= 12
        publish(self, folder, **options)

    place.setattr(working_copy.Copy, "publish", cut_in_the_middle)
    with pytest.raises((CheckpointError, StorageError)) as failure:
        loop.train(LINEAR | {"steps": 16}, url)
    assert "run the same command again once the store answers" in str(failure.value)
    assert str(tmp_path) not in capsys.readouterr().err
    place.setattr(working_copy.Copy, "publish", publish)
    wire.cut = False
    copies._copies.clear()
    assert json.loads(bucket.read(f"{url}/config.json"))["steps"] == 16
    assert {name.partition("/")[0] for name in bucket.listing(f"{url}/checkpoints")} >= {"8"}
    result = loop.train(LINEAR | {"steps": 16}, url)
    assert result == loop.train(LINEAR | {"steps": 16}, tmp_path / "local")
    copies._copies.clear()
    folder = storage.open_copy(url)
    assert measured(folder / "metrics.jsonl") == measured(tmp_path / "local" / "metrics.jsonl")
    checkpoint_files.require(folder / "checkpoints", 16)
    ours, theirs = (checkpoint.arrays(place / "checkpoints" / "16") for place in (folder, tmp_path / "local"))
    assert {k: v.tobytes() for k, v in ours.items()} == {k: v.tobytes() for k, v in theirs.items()}
    assert not bucket.listing(f"{url}/.lock")
    assert (folder / "checkpoints" / "16" / "checksums.json").exists()
    page.write(folder, tmp_path / "page.html")
    assert str(folder) not in (tmp_path / "page.html").read_text()
    assert jtasks.load(f"{url}/checkpoints/16").folder == folder
    wire.close()


def test_a_run_whose_workdir_was_taken_over_ends_and_changes_nothing(s3, place):
    place.setattr(leases, "RENEW", 0.1)
    place.setenv("PACE", "0.02")
    folder = storage.open_copy(f"{s3}/run")
    other = {"owner": "process 1 on moon", "machine": "moon", "process": "1 1", "renewals": 0}

    def work():
        with lock(folder):
            (folder / "config.json").write_text("{}")
            bucket.write(f"{s3}/run/.lock/000002", json.dumps(other).encode())
            time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt) as failure:
            work()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "taken over by process 1 on moon" in failure.value.__notes__[0]
    assert list(bucket.listing(f"{s3}/run")) == [".lock/000001", ".lock/000002"]


def test_a_fresh_run_asks_for_no_checkpoint(s3, gate_of_s3):
    loop.train(LINEAR | {"steps": 2}, f"{s3}/run")
    asked = [path for method, path in gate_of_s3.requests if method == "GET"]
    assert asked
    assert not [path for path in asked if re.search("checkpoints(%2F|/)0", path)]


def test_data_is_downloaded_once_and_again_when_it_changes(url, tmp_path, monkeypatch):
    for name in ("texts/a.txt", "texts/deep/b.txt", "texts/c.md", "one.txt", "one.txt.bak"):
        bucket.write(f"{url}/{name}", name.encode())
    got, download = [], bucket.download
    monkeypatch.setattr(bucket, "download", lambda address, path: (got.append(address), download(address, path)))
    file = storage.local(f"{url}/one.txt")
    assert file.read_text() == "one.txt"
    assert file.name == "one.txt"
    assert [path.name for path in storage.match_files(f"{url}/texts/*.txt")] == ["a.txt"]
    assert [path.name for path in storage.match_files(f"{url}/texts/**/*.txt")] == ["a.txt", "b.txt"]
    folder = storage.local(f"{url}/texts")
    assert sorted(path.name for path in folder.rglob("*") if path.is_file()) == ["a.txt", "b.txt", "c.md"]
    assert not storage.local(f"{url}/none").exists()
    got.clear()
    cached._download.cache_clear()
    bucket.write(f"{url}/texts/c.md", b"changed")
    bucket.remove(f"{url}/texts/a.txt")
    assert (storage.local(f"{url}/texts") / "c.md").read_text() == "changed"
    assert storage.local(f"{url}/one.txt").read_text() == "one.txt"
    assert got == [f"{url}/texts/c.md"]
    assert not (folder / "a.txt").exists()
    assert storage.shown(str(folder)) == f"{url}/texts"
    assert storage.local("~/x") == pathlib.Path("~/x").expanduser()


def test_what_is_written_to_an_output_arrives_at_the_end(url, tmp_path):
    with storage.closing():
        file = storage.outbox(f"{url}/deep/out.csv")
        file.write_text("1")
        assert not bucket.listing(url)
    assert content(url) == {"deep/out.csv": b"1"}
    with pytest.raises(ConfigError, match="is a bucket"):
        storage.outbox("s3://bucket")


def test_what_a_server_did_not_take_is_kept_and_named(s3, place, tmp_path):
    def work():
        with storage.closing():
            storage.outbox(f"{s3}/out.csv").write_text("1")
            place.setattr(bucket, "_open", lambda url: (_ for _ in ()).throw(ConnectionError("gone")))
            raise ValueError("first")

    with pytest.raises(ValueError, match="first") as failure:
        work()
    note = failure.value.__notes__[0]
    kept = pathlib.Path(note.rpartition(" is in ")[2])
    assert "gone" in note
    assert (kept / "out.csv").read_text() == "1"
    shutil.rmtree(kept.parent)


def test_machines_that_prepare_their_own_data_must_have_the_same(tmp_path, monkeypatch):
    other = fingerprint.of({"x": np.zeros((5, 2))})

    def broadcast(make):
        return other if isinstance(own := make(), dict) and "examples" in own else own

    monkeypatch.setattr(processes, "broadcast_from_first", broadcast)
    job.require_same_data({"x": np.zeros((5, 2))})
    with pytest.raises(DataError, match=r"process 0 has other training data than process 0: 5 -> 4 examples; give all"):
        job.require_same_data({"x": np.zeros((4, 2))})
    with pytest.raises(DataError, match="examples differ"):
        job.require_same_data({"x": np.ones((5, 2))})
    with pytest.raises(DataError, match="has other training data than process 0"):
        loop.train(LINEAR | {"steps": 2, "data": {"threads": 1, "shared": False}}, tmp_path / "run")


def test_a_watch_beside_a_training_sees_the_checkpoints_that_come_to_the_bucket(s3):
    url, config = f"{s3}/run", LINEAR | {"steps": 8, "keep": 9}
    loop.train(config, url)
    copies._copies.clear()
    mark = f"{url}/checkpoints/8/checksums.json"
    content = bucket.read(mark)
    bucket.remove(mark)
    waited = []

    def wait(_):
        assert len(waited) < 3
        waited.append(bucket.write(mark, content))

    result = watch.run(freeze(config), storage.open_copy(url), wait)
    assert (result["step"], len(waited)) == (8, 1)
    with pytest.raises(ConfigError, match=f"{s3}/none holds no config.json"):
        jtasks.load(f"{s3}/none")
    with pytest.raises(CheckpointError, match=f"no checkpoint of step 3 in {url}/checkpoints: it has 4, 8"):
        jtasks.load(f"{url}/checkpoints/3")
