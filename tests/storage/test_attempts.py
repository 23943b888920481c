"""Claims about stores that refuse, do not answer, or are none: one message at once or within seconds."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import bucket_servers
import front_door
import pytest
from bucket_servers import PAGE, gs_error, s3_error

from jtasks.errors import ConfigError, StorageError
from jtasks.run import loop
from jtasks.storage import attempts, bucket, copies

LINEAR = pathlib.Path(__file__).parents[1] / "data_tasks/linear.py"
UNKNOWN = {"s3": s3_error(403, "InvalidAccessKeyId", "no such key"), "gs": gs_error(401, "Invalid Credentials")}
EXPIRED = {"s3": s3_error(400, "ExpiredToken", "the token has expired"), "gs": UNKNOWN["gs"]}
DENIED = {"s3": s3_error(403, "AccessDenied", "Access Denied"), "gs": gs_error(403, "x has no storage.objects access")}


def operations(url, tmp_path):
    (tmp_path / "file").write_bytes(b"1")
    return {
        "listed": lambda: bucket.listing(url),
        "read": lambda: bucket.read(f"{url}/a"),
        "written": lambda: bucket.upload(tmp_path / "file", f"{url}/a"),
        "removed": lambda: bucket.remove(f"{url}/a"),
    }


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (UNKNOWN, "the credentials are not accepted .*: renew them, or (set AWS_PROFILE|run gcloud)"),
        (EXPIRED, "the credentials are not accepted .*: renew them"),
        (DENIED, "the credentials do not allow it .*: let them list, read, write and delete in this bucket"),
    ],
    ids=["unknown", "expired", "denied"],
)
def test_refused_credentials_are_an_error_of_the_user_at_once(url, gate, place, tmp_path, answers, message):
    place.setenv("JTASKS_PATIENCE", "60")
    begun = time.monotonic()
    for verb, operation in operations(f"{url}/403", tmp_path).items():
        gate.rule = lambda method, path: answers[url[:2]]
        with pytest.raises(ConfigError, match=rf"^{re.escape(url)}/403(/a)? cannot be {verb}: {message}") as failure:
            operation()
        assert "<" not in str(failure.value)
        gate.rule = lambda method, path: None
        operation()  # with renewed credentials
    assert time.monotonic() - begun < 40


def test_a_store_that_cannot_write_an_object_only_if_it_is_absent_is_refused(s3, gate_of_s3):
    gate_of_s3.rule = lambda method, path: s3_error(501, "NotImplemented", "a header") if method == "PUT" else None
    with pytest.raises(ConfigError, match=r"cannot be written: the store is not able to \(a header\)"):
        bucket.create(f"{s3}/lock", b"1")


def test_a_page_of_a_proxy_is_no_store_and_no_data(url, gate, place):
    for status in (200, 403, 503):
        gate.rule = lambda method, path, status=status: (status, *PAGE)
        with pytest.raises(StorageError) as failure:
            bucket.listing(f"{url}/data")
        assert "check the network and " in str(failure.value)
        assert gate.address in str(failure.value)
        assert "<" not in str(failure.value)


@pytest.mark.parametrize("fault", ["endpoint", "name", "port", "keys", "profile", "bucket", "region"])
def test_what_is_wrong_with_a_setting_is_said(s3, s3_address, place, fault):
    address, kind, message = s3, ConfigError, ""
    if fault == "endpoint":
        place.setenv("AWS_ENDPOINT_URL", "store:9000")
        message = "Invalid endpoint: store:9000.*check AWS_ENDPOINT_URL"
    elif fault == "name":
        place.setenv("AWS_ENDPOINT_URL", "http://store.invalid")
        kind, message = StorageError, "check the network and AWS_ENDPOINT_URL=http://store.invalid"
    elif fault == "port":
        place.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{bucket_servers.free_port()}")
        kind, message = StorageError, "Could not connect.*check the network and AWS_ENDPOINT_URL="
    elif fault == "keys":
        for name in bucket_servers.KEYS:
            place.delenv(name)
        place.setenv("HOME", "/nowhere")
        place.setenv("AWS_EC2_METADATA_DISABLED", "true")
        message = "there are no credentials .*set AWS_PROFILE, or AWS_ACCESS_KEY_ID"
    elif fault == "profile":
        place.setenv("AWS_PROFILE", "nobody")
        message = r"there are no credentials .*\(nobody\).*set AWS_PROFILE"
    elif fault == "bucket":
        address, message = "s3://My_Bucket!/run", "My_Bucket! is no name of a bucket"
    elif fault == "region":
        gate = bucket_servers.Gate(s3_address)
        gate.rule = lambda method, path: s3_error(400, "AuthorizationHeaderMalformed", "expecting 'eu-west-1'")
        place.setenv("AWS_ENDPOINT_URL", gate.address)
        message = "expecting 'eu-west-1'.*check AWS_ENDPOINT_URL and AWS_DEFAULT_REGION"
    with pytest.raises(kind, match=message):
        bucket.listing(address)


def test_a_bucket_that_never_answered_is_given_up_soon_and_one_that_did_is_waited_for(s3, place, monkeypatch):
    monkeypatch.setattr(attempts, "FIRST", 0.5)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    place.setenv("JTASKS_PATIENCE", "2")

    def fail():
        raise ConnectionError("gone")

    with pytest.raises(StorageError, match=r"for 0 s \(gone\): check the network"):
        attempts.attempt("s3://other/a", "read", fail)
    bucket.listing(s3)
    with pytest.raises(StorageError, match=r"for 2 s \(gone\): run the same command again once the store answers"):
        attempts.attempt(s3, "read", fail)


def test_nothing_is_left_of_a_workdir_that_cannot_be_opened(s3, gate_of_s3, tmp_path):
    gate_of_s3.rule = lambda method, path: DENIED["s3"]
    for open_ in (copies.open_copy, copies.outbox):
        with pytest.raises(ConfigError, match="do not allow it"):
            open_(f"{s3}/run")
    assert not list(tmp_path.glob("jtasks-*"))
    assert not copies._copies


# Each role that the address of a bucket may have, in one process: code and messages of every command.
ATTEMPT = """
import contextlib, io, json, sys
from jtasks import cli
import jtasks

def attempt(*words):
    text = io.StringIO()
    with contextlib.redirect_stderr(text), contextlib.redirect_stdout(text):
        code = cli.run(words)
    print(json.dumps([*words[:2], code, text.getvalue()]), flush=True)

url, linear, folder = sys.argv[1:]
"""

# Every command with an address.
ROLES = (
    ATTEMPT
    + """
data = [f"--config.data.{split}={url}/{split}.tsv" for split in ("train", "valid")]
attempt(f"--config={linear}", f"--workdir={url}/run")
for mode in ("train", "eval", "predict", "show", "watch", "export", "report", "probe"):
    attempt(f"--mode={mode}", f"--workdir={url}/run")
attempt("--mode=report", f"--runs={url}/*")
attempt("--mode=report", f"--output={url}/all.html", f"--workdir={folder}/none")
attempt("--mode=predict", f"--input={url}/in.txt", f"--workdir={folder}/none")
attempt("--mode=predict", f"--workdir=hf:{url}/model", "--input=-")
attempt("--mode=plan", f"--output={url}/rates.svg", "--devices=1", "--config=vit_digits")
attempt(f"--config={linear}", f"--workdir={url}/sweep", "--sweep.optim.lr=0.1,0.2")
attempt("--config=sst2", f"--workdir={folder}/a", *data)
attempt("--config=vit_digits", f"--workdir={folder}/b", f"--config.data.name=folder:{url}/photos")
attempt("--config=lm_text", f"--workdir={folder}/c", f"--config.data.files={url}/*.txt")
attempt("--config=vit_digits", f"--workdir={folder}/d", f"--config.init_from={url}/run")
attempt("--config=vit_digits", f"--workdir={folder}/e", f"--config.init_from={url}/run/checkpoints/4")
attempt("--config=vit_digits", f"--workdir={folder}/f", f"--config.init_from=hf:{url}/model")
for place in (f"{url}/run", f"{url}/run/checkpoints/4"):
    try:
        jtasks.load(place)
    except jtasks.errors.ConfigError as error:
        print(json.dumps(["load", place, 2, f"error: {error}"]))
"""
)


def test_every_role_of_an_address_has_one_message_and_leaves_nothing(s3, gate_of_s3, tmp_path):
    gate_of_s3.rule = lambda method, path: DENIED["s3"]
    (tmp_path / "tmp").mkdir()
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp"), "JTASKS_PATIENCE": "60"}
    done = subprocess.run(
        [sys.executable, "-c", ROLES, s3, LINEAR, tmp_path / "runs"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 23
    for *words, code, text in rows:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (words, code, text)
        assert f"error: {s3}" in text, (words, text)
        assert "do not allow it (Access Denied): let them list, read, write and delete" in text, (words, text)
        assert "Traceback" not in text, (words, text)
    assert not list((tmp_path / "tmp").iterdir())
    assert not [path for path in (tmp_path / "runs").rglob("*") if path.is_file()]


# Commands that write to a bucket, with a run that somebody else has made, and two that only read it.
READER = (
    ATTEMPT
    + """
for mode in ("predict", "embed", "show", "export", "watch", "report"):
    attempt(f"--mode={mode}", f"--workdir={url}/run")
attempt("--mode=predict", f"--output={url}/out.csv", f"--workdir={url}/run")
attempt("--mode=predict", f"--output={url}/out.csv", f"--workdir={url}/run", f"--input={linear}")
attempt("--mode=report", f"--output={url}/all.html", f"--runs={url}/run")
attempt("--mode=report", f"--output={folder}/page.html", f"--workdir={url}/run")
attempt("--mode=eval", f"--workdir={url}/run", "--split=valid")
"""
)


TRAINED = {"task": str(LINEAR), "steps": 2, "batch_size": 8, "data": {"threads": 1}, "model": {"width": 3}}


def test_keys_that_may_only_read_are_told_before_anything_is_computed(url, gate, tmp_path):
    loop.train(TRAINED, f"{url}/run")
    copies._copies.clear()
    before = bucket.listing(url)
    denied = DENIED[url[:2]]
    gate.rule = lambda method, path: denied if method in ("PUT", "POST", "DELETE") else None
    (tmp_path / "pages").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", READER, url, LINEAR, tmp_path / "pages"], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    *refused, report, evaluated = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(refused) == 9
    for *words, code, text in refused:
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert (code, len(errors)) == (2, 1), (words, code, text)
        assert f"error: {url}" in text, (words, text)
        assert "cannot be written to: the credentials do not allow it" in text, (words, text)
        elsewhere = "--mode=watch" not in words and f"--output={url}" not in str(words)
        assert ("write elsewhere, with --output=PATH" in text) == elsewhere, (words, text)
    assert (report[2], evaluated[2]) == (0, 0), (report, evaluated)
    assert bucket.listing(url) == before
    gate.rule = lambda method, path: denied if method == "DELETE" else None
    bucket.require_writable(f"{url}/run")  # to write is enough


def test_processes_that_meet_in_a_folder_that_they_may_only_read_are_all_told(s3, gate_of_s3):
    loop.train(TRAINED, f"{s3}/run")
    copies._copies.clear()
    gate_of_s3.rule = lambda method, path: DENIED["s3"] if method in ("PUT", "POST", "DELETE") else None
    place = [f"--workdir={s3}/run", "--mode=eval", "--split=valid", "--num-processes=2"]
    place += [f"--coordinator=127.0.0.1:{bucket_servers.free_port()}"]
    for secret, code in (("", 2), ("of both", 0)):  # with a secret of their own they need no token there
        running = [front_door.start(*place, f"--process-id={i}", JTASKS_SECRET=secret) for i in range(2)]
        ends = [(process.communicate(timeout=300)[1], process.returncode) for process in running]
        for errors, ended in ends:
            assert ended == code, ends
            assert ("cannot be written to" in errors) == (code == 2), errors
            assert ("do not allow it (Access Denied)" in errors) == (code == 2), errors
            assert "Traceback" not in errors
