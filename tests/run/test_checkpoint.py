"""Checkpoints come back bit for bit, or not at all."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jtasks.distributed import processes
from jtasks.errors import CheckpointError, DamagedError
from jtasks.run import checkpoint, checkpoint_files, checkpoint_writer, step


def state(seed: int = 0, at: int = 3) -> step.State:
    keys = jax.random.split(jax.random.key(seed), 2)
    params = {
        "dense": {"kernel": jax.random.normal(keys[0], (4, 8)), "bias": jnp.zeros(8)},
        "empty": jnp.zeros((0, 3)),
        "scale": jax.random.normal(keys[1], ()),
    }
    return step.init_state(params, optax.adam(1e-3), ema=True)._replace(step=jnp.int32(at))


def save(folder: pathlib.Path, *states: step.State) -> None:
    with checkpoint_writer.Checkpoints(folder) as checkpoints:
        for each in states:
            checkpoints.save(each, int(each.step))


def assert_same(a, b) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y), strict=True), a, b)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("saved")
    save(folder, state(0, 3), state(1, 5))
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> pathlib.Path:
    return shutil.copytree(saved, tmp_path / "checkpoints")


def placed(devices) -> step.State:
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec())
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state())


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_state_comes_back_bit_for_bit_onto_any_number_of_devices(folder, devices):
    restored = checkpoint.restore(folder / "5", placed(jax.devices()[:devices]))
    assert_same(restored, state(1, 5))
    assert len(restored.params["scale"].sharding.device_set) == devices


@pytest.mark.parametrize(("shards", "limit"), [(2, 128), (1, 128)])  # of the largest array, of 128 bytes
def test_small_groups_are_read_two_at_once_and_of_large_arrays_one(folder, monkeypatch, shards, limit):
    group, limits = checkpoint._groups, []
    monkeypatch.setattr(checkpoint, "_groups", lambda sizes, most: limits.append(most) or group(sizes, most))
    monkeypatch.setattr(checkpoint, "HOST_BYTES", shards * limit)
    assert_same(checkpoint.restore(folder / "5", placed(jax.devices()[:2]), verify=True), state(1, 5))
    assert limits == [limit]


@pytest.mark.parametrize("least", [16, 2**22])  # bytes: some arrays in slices, all by one device
def test_a_state_that_all_devices_hold_is_saved_once_whoever_saves_what(least, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "SLICE_BYTES", least)
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), ("data",)), PartitionSpec())
    save(tmp_path, jax.device_put(state(2, 7), everywhere))
    assert_same(checkpoint.restore(tmp_path / "7", placed(jax.devices()[:1])), state(2, 7))


def test_the_newest_undamaged_checkpoint_is_chosen(folder):
    assert checkpoint_files.newest(folder, pytest.fail) == 5
    assert checkpoint_files.newest(folder / "absent", pytest.fail) is None


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in checkpoint_files.UNCHECKED)


def test_any_flipped_bit_of_any_file_is_found_named_and_the_one_before_is_used(folder):
    for path in files(folder / "5"):
        content = path.read_bytes()
        for position in {0, len(content) // 2, len(content) - 1}:
            path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
            warnings: list[str] = []
            assert checkpoint_files.newest(folder, warnings.append) == 3
            assert path.name in warnings[0]
            assert "has changed" in warnings[0]
        path.write_bytes(content)
    assert checkpoint_files.newest(folder, pytest.fail) == 5


def test_a_flipped_bit_of_a_large_file_is_found_while_it_is_restored_and_the_one_before_is_used(folder, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "SMALL", 100)
    monkeypatch.setattr(checkpoint, "HOST_BYTES", 256)  # two groups at once
    path = max((folder / "5" / "ocdbt.process_0" / "d").iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for position in (0, len(content) // 2, len(content) - 1):  # Orbax refuses some of these, and reads others as data
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        assert checkpoint_files.newest(folder, pytest.fail, whole=False) == 5
        with pytest.raises(DamagedError, match=rf"5 is damaged: .*{path.name} has changed"):
            checkpoint.restore(folder / "5", placed(jax.devices()[:1]), verify=True)
    assert checkpoint_files.newest(folder, pytest.fail, whole=False, damaged=[5]) == 3
    assert_same(checkpoint.restore(folder / "3", placed(jax.devices()[:1]), verify=True), state(0, 3))
    with pytest.raises(CheckpointError, match=r"(?s)5 is damaged.*3 is damaged.*no undamaged checkpoint is left"):
        checkpoint_files.newest(folder, pytest.fail, whole=False, damaged=[3, 5])


def test_of_an_older_checkpoint_than_the_one_to_restore_nothing_is_read(folder):
    files(folder / "3")[-1].write_bytes(b"x")
    assert checkpoint_files.newest(folder, pytest.fail) == 5


def test_each_process_verifies_its_own_large_files_and_a_share_of_others(folder, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "SMALL", 0)
    names = checkpoint_files.files(folder / "5")
    shares = [set(checkpoint_files.large_files(folder / "5", i, 3)) for i in range(4)]
    assert sorted(name for share in shares for name in share) == names
    assert {name for name in names if name.startswith("ocdbt.process_0/")} <= shares[0]
    assert [checkpoint_files.writer(f"ocdbt.process_{i}/d/7") for i in (0, 11)] == [0, 11]
    assert checkpoint_files.writer("_METADATA") == 0


@pytest.mark.parametrize("harm", ["truncate", "delete", "empty", "checksums", "all"])
def test_any_truncated_or_missing_file_is_found(folder, harm):
    for path in files(folder / "5"):
        content = path.read_bytes() if path.exists() else b"?"
        if harm == "truncate":
            path.write_bytes(content[:-1])
        elif harm == "empty":
            path.write_bytes(b"")
        elif harm == "delete":
            path.unlink()
        elif harm == "checksums":
            (folder / "5" / checkpoint_files.CHECKSUMS).unlink(missing_ok=True)
        else:
            for each in files(folder / "5"):
                each.unlink()
        assert checkpoint_files.newest(folder, lambda _: None) == 3
        path.write_bytes(content)


def test_when_none_is_good_it_is_an_error_and_no_fresh_start(folder):
    for number in ("3", "5"):
        files(folder / number)[-1].write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"(?s)5 is damaged.*3 is damaged.*no undamaged checkpoint is left"):
        checkpoint_files.newest(folder, lambda _: None)


def test_a_save_that_never_ended_is_no_checkpoint(folder):
    shutil.copytree(folder / "5", folder / "saving-9")
    assert checkpoint_files.newest(folder, pytest.fail) == 5
    checkpoint_files.clear_unfinished(folder)
    assert not (folder / "saving-9").exists()


def test_restoring_lists_every_leaf_that_does_not_fit(folder):
    like = placed(jax.devices()[:1])
    like.params["extra"] = jax.ShapeDtypeStruct((2,), jnp.float32)
    like.params["dense"]["kernel"] = jax.ShapeDtypeStruct((4, 9), jnp.float32)
    del like.params["scale"]
    with pytest.raises(CheckpointError) as error:
        checkpoint.restore(folder / "5", like)
    text = str(error.value)
    assert "missing: params/extra float32[2]" in text
    assert "params/dense/kernel is float32[4, 8], expected float32[4, 9]" in text
    assert "not in this run: params/scale float32[]" in text


def test_a_part_can_be_restored_by_its_prefix(folder):
    like = {"ema_params": placed(jax.devices()[:1]).ema_params}
    assert_same(checkpoint.restore(folder / "5", like, only="ema_params/"), {"ema_params": state(1).ema_params})


def test_importing_takes_what_fits_and_says_what_it_took_and_left(folder):
    params = {"dense": {"kernel": jnp.ones((4, 8)), "bias": jnp.ones(9)}, "head": jnp.ones(2)}
    taken, report = checkpoint.import_params(str(folder), params, pytest.fail)
    assert_same(taken["dense"]["kernel"], state(1).params["dense"]["kernel"])
    assert_same(taken["dense"]["bias"], jnp.ones(9))
    assert report == {
        "taken": ["dense/kernel"],
        "left": ["dense/bias float32[9]", "head float32[2]"],
        "unused": ["dense/bias float32[8]", "scale float32[]"],
    }


def test_importing_finds_a_workdir_a_checkpoints_folder_and_a_single_step(folder):
    params = state().params
    for source, seed in ((folder, 1), (folder / "3", 0), (folder.parent, 1)):
        taken, _ = checkpoint.import_params(str(source), params, pytest.fail)
        assert_same(taken["scale"], state(seed).params["scale"])


def test_importing_refuses_what_has_nothing_in_common_is_absent_or_damaged(folder, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no parameter of config.init_from=.* fits: .* wanted scale float32\[3\]"
    ):
        checkpoint.import_params(str(folder), {"scale": jnp.ones(3)}, pytest.fail)
    with pytest.raises(CheckpointError, match=r"no checkpoint in config.init_from="):
        checkpoint.import_params(str(tmp_path / "absent"), state().params, pytest.fail)
    files(folder / "3")[0].write_bytes(b"x")
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.import_params(str(folder / "3"), state().params, pytest.fail)


def test_what_is_expendable_is_deleted_once_the_next_is_saved(folder):
    with checkpoint_writer.Checkpoints(folder) as checkpoints:
        checkpoints.save(state(3, 7), 7, expendable=[3])
        checkpoints.wait()
        assert checkpoint_files.saved_steps(folder) == [5, 7]
        checkpoints.delete([5])
    assert checkpoint_files.saved_steps(folder) == [7]


def test_a_state_that_is_donated_after_the_call_is_saved_as_it_was(tmp_path):
    double = jax.jit(lambda s: jax.tree.map(lambda x: x * 2, s), donate_argnums=0)
    big = {"x": jnp.arange(1_000_000, dtype=jnp.float32)}
    current = step.init_state(big, optax.identity(), ema=False)._replace(step=jnp.int32(1))
    with checkpoint_writer.Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(current, 1)
        for _ in range(4):
            current = double(current)
    found = checkpoint.arrays(tmp_path / "1")
    np.testing.assert_array_equal(found["params/x"], np.arange(1_000_000, dtype=np.float32))


def test_a_folder_that_cannot_be_written_is_told_and_the_old_checkpoint_stays(folder):
    (folder / "saving-7").write_text("in the way")
    blocked = folder.with_name("blocked")
    blocked.write_text("a file where the folder should be")
    with (
        pytest.raises(CheckpointError, match="step 7 cannot be saved"),
        checkpoint_writer.Checkpoints(blocked) as checkpoints,
    ):
        checkpoints.save(state(2, 7), 7)
    assert checkpoint_files.newest(folder, pytest.fail) == 5


def test_a_save_that_is_cleared_meanwhile_fails_and_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint_files, "flush", lambda partial, _: checkpoint_files.clear_unfinished(partial.parent))
    with pytest.raises(CheckpointError, match="step 7 was not saved"):
        save(tmp_path, state(2, 7))
    assert not list(tmp_path.iterdir())


def test_in_a_run_of_several_processes_a_failed_save_ends_this_one_at_once(tmp_path, monkeypatch):
    ends = []
    monkeypatch.setattr(processes, "end", lambda *end: ends.append(end))
    monkeypatch.setattr(processes, "alone", lambda: False)
    monkeypatch.setattr(checkpoint_files, "flush", lambda partial, _: os.listdir(partial / "absent"))
    with pytest.raises(CheckpointError):  # reached only because `end` is replaced
        save(tmp_path, state(2, 7))
    ((text, code),) = ends
    assert code == 1
    assert text.startswith(f"error: step 7 was not saved in {tmp_path}: [Errno 2] No such file or directory")
    assert not list(tmp_path.iterdir())


def test_the_checksums_cover_every_file(folder):
    listed = set(json.loads((folder / "5" / checkpoint_files.CHECKSUMS).read_text()))
    assert listed == {path.relative_to(folder / "5").as_posix() for path in files(folder / "5")}
    assert len(listed) > 3


@pytest.mark.parametrize(
    "name", ["lr[1e-3]", "a\\b", "gs:", "new\nline", "2024", "a?b*", "x\udce9", "ä ö", "%2f", "{x}"]
)
def test_any_name_of_a_folder_serves(name, tmp_path):
    folder = tmp_path / name / "checkpoints"
    folder.parent.mkdir()
    save(folder, state(1, 5))
    assert checkpoint_files.newest(folder, pytest.fail) == 5
    assert_same(checkpoint.restore(folder / "5", placed(jax.devices()[:1])), state(1, 5))
    taken, report = checkpoint.import_params(str(folder.parent), state(2).params, pytest.fail)
    assert_same(taken, state(1).params)
    assert not report["left"]
    assert sorted(checkpoint.arrays(folder / "5")) == sorted(checkpoint.leaves(state(1)))


MEMORY = """
import pathlib, sys
import jax
from jtasks.run import checkpoint, checkpoint_writer

def memory(name):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))

def measure(action):
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    before = memory("VmRSS")
    action()
    return memory("VmHWM") - before

folder, device = pathlib.Path(sys.argv[1]), jax.sharding.SingleDeviceSharding(jax.devices()[0])
with checkpoint_writer.Checkpoints(folder) as checkpoints:  # what the first save and restore load
    checkpoints.save({"a": jax.numpy.ones(3)}, 1)
checkpoint.restore(folder / "1", {"a": jax.ShapeDtypeStruct((3,), "float32", sharding=device)})
shape = (33_000, 1024)  # 135 MB
if sys.argv[2] == "save":
    normal = jax.jit(lambda i: jax.random.normal(jax.random.key(i), shape))
    state = jax.block_until_ready({f"layer_{i}": normal(i) for i in range(4)})
    with checkpoint_writer.Checkpoints(folder) as checkpoints:
        peak = measure(lambda: (checkpoints.save(state, 2), checkpoints.wait()))
else:
    like = {f"layer_{i}": jax.ShapeDtypeStruct(shape, "float32", sharding=device) for i in range(4)}
    kept = []
    peak = measure(lambda: kept.append(checkpoint.restore(folder / "2", like, verify=True)))
    peak -= sum(leaf.nbytes for leaf in jax.tree.leaves(kept))
print(peak / (shape[0] * shape[1] * 4))
"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak of the memory")
def test_a_save_and_a_restore_need_the_memory_of_about_one_array_beyond_the_state(tmp_path):
    for action, most in (("save", 2.4), ("restore", 1.3)):  # the C library keeps small blocks of a save
        command = [sys.executable, "-c", MEMORY, str(tmp_path), action]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        assert float(output) < most, f"{action}: {output} arrays"
