"""Claims about runs in buckets whose keys expire, whose objects are damaged, and that have many or odd names."""

import pathlib
import shutil

import pytest
from bucket_servers import s3_error

from jtasks import storage
from jtasks.errors import CheckpointError
from jtasks.run import checkpoint_files, loop
from jtasks.storage import attempts, bucket, copies

LINEAR = {
    "task": str(pathlib.Path(__file__).parents[1] / "data_tasks/linear.py"),
    "batch_size": 8,
    "show_count": 0,
    "log_every": 2,
    "eval_every": 8,
    "save_every": 4,
    "keep": 9,
    "data": {"threads": 1},
    "model": {"width": 3},
    "optim": {"name": "adamw", "lr": 0.01, "schedule": "constant", "warmup": 0.0},
}


def saved(url):
    names = bucket.listing(f"{url}/checkpoints")
    return sorted(int(name.partition("/")[0]) for name in names if name.endswith("checksums.json"))


def test_a_run_whose_keys_expire_trains_on_and_keeps_the_checkpoint_that_is_not_in_the_bucket(
    s3, gate_of_s3, place, tmp_path, capsys
):
    config, folder = LINEAR | {"steps": 16}, f"{s3}/run"
    place.setenv("JTASKS_PATIENCE", "300")  # a refusal is not waited for
    renewed = []

    def expire(method, path):
        done = [path for method, path in gate_of_s3.requests if method == "PUT" and path.endswith("4/checksums.json")]
        return s3_error(400, "ExpiredToken", "the token has expired") if len(done) > 0 and not renewed else None

    def train():
        with storage.closing():
            return loop.train(config, folder)

    gate_of_s3.rule = expire
    with pytest.raises(CheckpointError, match=r"step 16 was not saved .* are not accepted \(the token") as failure:
        train()
    kept = pathlib.Path(failure.value.__notes__[0].removeprefix("what is not in the bucket is in "))
    assert len(failure.value.__notes__) == 1
    assert "step 12 was not saved" in capsys.readouterr().err
    assert checkpoint_files.saved_steps(kept / "checkpoints")[-1] == 16
    assert checkpoint_files.damage(kept / "checkpoints" / "16") == []
    local = loop.train(config | {"steps": 20}, kept)
    renewed.append(True)
    attempts._reached.clear()
    assert train()["step"] == 16
    assert saved(folder)[-1] == 16
    config["steps"] = 20
    assert train() == local
    assert not [path for path in tmp_path.glob("jtasks-*") if path != kept.parents[1]]
    shutil.rmtree(kept.parents[1])


def test_keys_that_may_not_delete_keep_the_checkpoints(s3, gate_of_s3, capsys):
    gate_of_s3.rule = lambda method, path: s3_error(403, "AccessDenied") if method == "DELETE" else None
    with storage.closing():
        loop.train(LINEAR | {"steps": 8, "keep": 1, "eval_every": 0}, f"{s3}/run")
    assert saved(f"{s3}/run") == [4, 8]
    assert f"WARNING: {s3}/run/checkpoints/4 is no longer needed and still there" in capsys.readouterr().err


# Which file of a checkpoint, by the start of its name, and what becomes of it: None deletes it.
DAMAGES = {
    "truncated": ("d/", lambda content: content[:-1]),
    "emptied": ("d/", lambda content: b""),
    "flipped": ("ocdbt.process_0/d/", lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]),
    "deleted": ("d/", lambda content: None),
    "manifest": ("manifest.ocdbt", lambda content: None),
    "description": ("_METADATA", lambda content: None),
    "sums": ("checksums.json", lambda content: content[:-9]),
    "mark": ("checksums.json", lambda content: None),
}


def test_of_a_damaged_checkpoint_in_a_bucket_the_older_one_counts_as_on_a_disk(url, tmp_path):
    run = tmp_path / "run"
    loop.train(LINEAR | {"steps": 8}, run)
    for damage, (start, change) in DAMAGES.items():
        local, remote = tmp_path / damage, f"{url}/{damage}"
        shutil.copytree(run, local)
        broken = next(path for path in sorted(local.glob(f"checkpoints/8/{start}*")) if path.is_file())
        content = change(broken.read_bytes())
        broken.unlink() if content is None else broken.write_bytes(content)
        files = [path.relative_to(local).as_posix() for path in local.rglob("*") if path.is_file()]
        list(bucket.each(bucket.upload, [(local / name, f"{remote}/{name}") for name in files if name != ".lock"]))
        said, of_bucket = [], []
        folder = storage.open_copy(remote)
        newest = checkpoint_files.newest(local / "checkpoints", said.append)
        assert newest == checkpoint_files.newest(folder / "checkpoints", of_bucket.append) == 4, damage
        if damage != "mark":  # without it a checkpoint in a bucket was never finished
            assert [text.replace(str(local), remote) for text in said] == of_bucket, damage
            assert len(said) == 1
        if damage == "flipped":
            assert loop.train(LINEAR | {"steps": 12}, remote) == loop.train(LINEAR | {"steps": 12}, local)
            assert saved(remote) == [4, 8, 12]
        if damage == "mark":
            with copies._copies[remote].locked("", print, of_bucket.append):
                assert saved(remote) == [4]
            assert of_bucket == [
                f"{remote}/checkpoints/8 has no checksums.json, as its upload did not end: it is removed"
            ]
    bucket.remove(f"{url}/truncated/checkpoints/4/manifest.ocdbt")
    copies._copies.clear()
    with pytest.raises(CheckpointError, match="no undamaged checkpoint is left in"):
        checkpoint_files.newest(storage.open_copy(f"{url}/truncated") / "checkpoints", print)


@pytest.mark.slow
def test_a_store_that_takes_two_seconds_for_each_answer_holds_the_run_up_and_changes_nothing(
    s3, gate_of_s3, tmp_path, capsys
):
    gate_of_s3.delay = 2.0
    with storage.closing():
        result = loop.train(LINEAR | {"steps": 8}, f"{s3}/run")
    gate_of_s3.delay = 0.0
    assert result == loop.train(LINEAR | {"steps": 8}, tmp_path / "run")
    assert saved(f"{s3}/run") == [4, 8]
    assert not bucket.listing(f"{s3}/run/.lock")
    assert "WARNING" not in capsys.readouterr().err
