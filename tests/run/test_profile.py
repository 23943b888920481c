"""Claims about profiles: which steps they hold, and that nothing about them can end a run."""

import gzip
import json
import pathlib
import warnings
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jtasks import config as configs
from jtasks.run import profile, train
from jtasks.run.start import Setup

LINEAR = str(pathlib.Path(__file__).parents[1] / "data_tasks" / "linear.py")


def run(workdir, **window):
    overrides = [f"--config.profile.{name}={value}" for name, value in window.items() if name != "until"]
    return train(configs.load(LINEAR, [f"--config.steps={window.get('until', 6)}", *overrides]), workdir)


def recorded(workdir):
    """The step numbers in the traces of a run."""
    files = sorted(workdir.glob("profile/plugins/profile/*/*.xplane.pb"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # as an error, that of JAX's own types ends Python 3.13
        planes = [plane for file in files for plane in jax.profiler.ProfileData.from_file(str(file)).planes]
        events = [event for plane in planes for line in plane.lines for event in line.events]
        return sorted({dict(event.stats)["step_num"] for event in events if event.name == "train"})


def setup(workdir, said, resumed=0, start=2, steps=3):
    fields = SimpleNamespace(start=start, steps=steps)
    log = SimpleNamespace(pause=lambda: jax.named_scope("pause"), message=said.append, warn=said.append)
    return Setup(SimpleNamespace(config=SimpleNamespace(profile=fields)), workdir, {}, None, resumed, 6, log, {}, None)


def add(state, batch):
    return state + batch, jnp.sum(state)


def test_a_trace_names_its_steps_and_opens_in_perfetto(tmp_path):
    result = run(tmp_path, start=2, steps=3)
    assert recorded(tmp_path) == [2, 3, 4]
    (trace,) = tmp_path.glob("profile/plugins/profile/*/perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert [e["args"]["step_num"] for e in events if e.get("name") == "train"] == ["2", "3", "4"]
    assert gzip.decompress((tmp_path / "profile" / "memory-4.prof").read_bytes())  # pprof's format
    assert run(tmp_path.with_name("unprofiled")) == result


def test_a_window_past_the_end_is_cut_and_one_before_the_start_leaves_nothing(tmp_path, capsys):
    run(tmp_path, start=5, steps=10)
    assert recorded(tmp_path) == [5, 6]
    run(tmp_path, start=5, steps=2, until=8)
    assert recorded(tmp_path) == [5, 6]
    run(tmp_path, start=12, steps=2, until=10)
    assert (
        recorded(tmp_path) == [5, 6] and "config.profile.start=12 is after the last step, 10" in capsys.readouterr().err
    )


def test_an_error_within_the_window_leaves_the_steps_so_far(tmp_path):
    said = []

    def fail_after_three():
        with profile.recording(add, setup(tmp_path, said)) as step:
            for _ in range(3):
                step(jnp.ones(2), jnp.ones(2))
            raise KeyError

    with pytest.raises(KeyError):
        fail_after_three()
    assert recorded(tmp_path) == [2, 3] and "steps 2 to 3" in said[0]


def test_a_profile_that_cannot_be_written_warns(tmp_path):
    (tmp_path / "profile").write_text("a file")
    said = []
    with profile.recording(add, setup(tmp_path, said)) as step:
        outputs = [step(jnp.ones(2), jnp.ones(2)) for _ in range(6)]
    assert len(outputs) == 6 and len(said) == 1 and "training goes on" in said[0]


@pytest.mark.parametrize("window", [{"steps": 0}, {"start": 4, "steps": 2}])
def test_a_step_outside_of_any_window_is_left_as_it_is(tmp_path, window):
    with profile.recording(add, setup(tmp_path, [], resumed=5, **window)) as step:
        assert step is add
