"""The launch recipes, with launchers that start what they are given on this machine."""

import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import pytest
import yaml
from front_door import LINEAR, ROOT

from jtasks import cli
from jtasks.distributed.clusters import Cluster, detect
from jtasks.flags import make_parser
from jtasks.run import checkpoint_files

LAUNCH = ROOT / "launch"
SHORT = [*LINEAR, "--config.steps=2"]


@pytest.fixture
def fakes(tmp_path):
    """A function that puts commands into PATH, and the environment that finds them there first."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(**scripts: str) -> dict[str, str]:
        for name, script in scripts.items():
            (folder / name).write_text(f"#!/bin/bash\n{script}\n")
            (folder / name).chmod(0o755)
        python = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHON": os.sys.executable}
        return {**os.environ, **python, "PATH": f"{folder}:{os.environ['PATH']}", "LOG": str(tmp_path / "log")}

    return put


def script(name: str, *arguments: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(LAUNCH / name), *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, cwd=ROOT, env=env, start_new_session=True, **pipes)
    try:
        found = running.communicate(timeout=300)
    finally:
        with contextlib.suppress(ProcessLookupError):  # all that it started: they hold the pipes open
            os.killpg(running.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, running.returncode, *found)


@pytest.mark.parametrize("name", ["ssh-hosts.sh", "tpu-vm.sh"])
def test_without_arguments_a_script_says_how_it_is_used(name, fakes):
    ended = script(name, env=fakes())
    assert ended.returncode == 2
    assert f"launch/{name}" in ended.stderr


LOGGED = 'echo "$@" >>"$LOG"'
CANCELLED, RUNNING = "echo COMPLETING", "echo RUNNING"
QUEUED = [
    (0, 0, RUNNING, ""),
    (75, 0, RUNNING, "requeue {}\n"),
    (143, 0, RUNNING, "requeue {}\n"),
    (75, 75, CANCELLED, ""),
    (1, 1, RUNNING, ""),
]


@pytest.mark.parametrize(("code", "expected", "state", "queued"), QUEUED)
def test_slurm_queues_again_what_was_stopped_and_nothing_else(code, expected, state, queued, fakes):
    env = fakes(srun=f"{LOGGED}.srun\nexit {code}", scontrol=LOGGED, squeue=state)
    job, array = {"SLURM_JOB_ID": "7"}, {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    container = {"CONTAINER": "apptainer exec jtasks.sif", "PYTHON": "python"}
    calls = [
        ("slurm.sbatch", "--workdir=a folder", job, "7", "--workdir=a folder"),
        ("slurm.sbatch", "--workdir=run %a", job | array, "7_3", "--workdir=run 3"),
        ("slurm-sweep.sbatch", "--sweep.seed=0,1", job | array, "7_3", "--sweep.seed=0,1 --sweep-index=3"),
        ("slurm.sbatch", "-x", job | container, "7", "-x"),
        ("slurm-sweep.sbatch", "-x", job | array | container, "7_3", "-x --sweep-index=3"),
    ]
    for name, argument, names, queues, words in calls:
        assert script(name, argument, env=env | names).returncode == expected
        assert (pathlib.Path(env["LOG"]).read_text() if queued else "") == queued.format(queues)
        ran = pathlib.Path(f"{env['LOG']}.srun").read_text()
        python = "apptainer exec jtasks.sif python" if "CONTAINER" in names else sys.executable
        assert ran == f"{python} main.py {words}\n"
        for log in pathlib.Path(env["LOG"]).parent.glob("log*"):
            log.unlink()
    shared = script("slurm.sbatch", "--workdir=one", "--config.seed=%a", env=env | job | array)
    assert (shared.returncode, "folders of their own" in shared.stderr) == (2, True)
    alone = script("slurm-sweep.sbatch", "--sweep.seed=0,1", env=env)
    assert (alone.returncode, "--array=0-LAST" in alone.stderr) == (2, True)


def job_set(name):
    """A manifest, its replicated job, its pod and its container."""
    (manifest,) = yaml.safe_load_all((LAUNCH / name).read_text())
    (replicated,) = manifest["spec"]["replicatedJobs"]
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return manifest, replicated, replicated["template"]["spec"], container


@pytest.mark.parametrize("name", ["k8s-jobset.yaml", "gke-tpu.yaml"])
def test_a_job_set_restarts_what_was_evicted_and_not_what_failed_by_its_own_fault(name):
    manifest, _, job, container = job_set(name)
    (rule,) = manifest["spec"]["failurePolicy"]["rules"]
    # The webhook of JobSet refuses other names (jobset_webhook.go).
    assert re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", rule["name"])
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    evicted, failed = job["podFailurePolicy"]["rules"]
    assert (evicted["action"], evicted["onPodConditions"][0]["type"]) == ("Count", "DisruptionTarget")
    codes = [cli.EXIT_FAILED, cli.EXIT_USAGE]
    assert failed["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": codes}
    assert failed["action"] == "FailJob"
    assert (job["backoffLimit"], job["completionMode"], job["parallelism"]) == (0, "Indexed", job["completions"])
    flags, overrides = make_parser().parse_known_args(container["args"])
    assert (flags.timeout, overrides) == (3600, [])
    assert flags.workdir.startswith(container["volumeMounts"][0]["mountPath"])


def test_the_job_set_gives_each_pod_its_place():
    manifest, workers, job, container = job_set("k8s-jobset.yaml")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    name = manifest["metadata"]["name"]
    first = f"{name}-{workers['name']}-0-0.{name}:55527"  # JobSet's name of the first pod, and its subdomain
    found = [detect({**environment, "JOB_COMPLETION_INDEX": str(i)}) for i in range(job["completions"])]
    assert found == [Cluster("Kubernetes", first, 4, i) for i in range(4)]
    assert workers["replicas"] == 1


def test_skypilot_gives_each_machine_its_place_and_starts_again_only_what_was_stopped(fakes, tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    recovery = task["resources"]["job_recovery"]
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [cli.EXIT_STOPPED]}
    env = fakes(python='env | grep ^JAX_ >"$LOG"\nprintf "%s\\n" "$@"')
    (tmp_path / "jtasks-env").symlink_to(tmp_path)  # its bin has the python
    for rank in range(task["num_nodes"]):
        sky = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_RANK": str(rank)}
        command = ["bash", "-c", task["run"]]
        place = {"WORKDIR": "s3://a b/c", "HOME": str(tmp_path)}
        output = subprocess.run(command, env=env | sky | place, check=True, stdout=subprocess.PIPE, text=True).stdout
        variables = dict(line.split("=", 1) for line in pathlib.Path(env["LOG"]).read_text().splitlines())
        assert detect(variables) == Cluster("the environment", "10.0.0.1:55527", 2, rank)
        flags, overrides = make_parser().parse_known_args(output.splitlines()[1:])
        assert (flags.workdir, overrides) == ("s3://a b/c", ["--config.data.shared=False"])


LOADED = """
import contextlib, json, sys
with contextlib.redirect_stdout(sys.stderr):
    import sky
    from sky.skylet import log_lib
    task = sky.Task.from_yaml_config(json.load(sys.stdin), env_overrides=json.loads(sys.argv[1]))
    (resources,) = task.resources
print(json.dumps([resources.job_recovery, log_lib.make_task_bash_script(task.run, task.envs)]))
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("sky") is None, reason="SkyPilot is not installed")
def test_skypilot_itself_reads_its_recipe_and_asks_for_the_folder(tmp_path):
    python = pathlib.Path(shutil.which("sky")).resolve().with_name("python")
    recipe = json.dumps(yaml.safe_load((LAUNCH / "skypilot.yaml").read_text()))
    env = {**os.environ, "HOME": str(tmp_path), "SKYPILOT_DISABLE_USAGE_COLLECTION": "1"}

    def load(envs):
        command = [str(python), "-c", LOADED, json.dumps(envs)]
        return subprocess.run(command, input=recipe, env=env, capture_output=True, text=True, cwd=tmp_path)

    read = load([["WORKDIR", "s3://a b/c"]])
    assert read.returncode == 0, read.stderr
    recovery, run = json.loads(read.stdout)
    assert recovery == {"max_restarts_on_errors": 0, "recover_on_exit_codes": [cli.EXIT_STOPPED], "strategy": None}
    assert "\nexport WORKDIR='s3://a b/c'\n" in run
    without = load([])
    assert (without.returncode, "Environment variable 'WORKDIR' is None" in without.stderr) == (1, True)


def test_the_image_holds_the_program():
    words = (LAUNCH / "Dockerfile").read_text()
    copied = [path for line in re.findall(r"^COPY (.*) \S+$", words, re.MULTILINE) for path in line.split()]
    assert {"jtasks", "configs", "main.py", "pyproject.toml"} <= set(copied)
    assert all((ROOT / path).exists() for path in copied)
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    everything, *kept, compiled = [line for line in lines if not line.startswith("#")]
    assert (everything, compiled) == ("*", "**/__pycache__")
    assert set(kept) == {f"!{path.split('/')[0]}" for path in copied}


# ssh -o OPTION HOST COMMAND
LOCAL_SSH = 'while [ "$1" = -o ]; do echo "$2" >>"$LOG"; shift 2; done\nshift\nexec bash -c "$1"'


def test_a_list_of_hosts_trains_as_one_run(tmp_path, fakes):
    found = script(
        "ssh-hosts.sh", "localhost me@127.0.0.1", *SHORT, f"--workdir={tmp_path / 'a run'}", env=fakes(ssh=LOCAL_SSH)
    )
    assert found.returncode == 0, found.stdout + found.stderr
    lines = found.stdout.splitlines()
    assert any(line.startswith("localhost: 2 processes, by the command line") for line in lines)
    (result,) = [line.removeprefix("localhost: ") for line in lines if line.startswith("localhost: {")]
    assert json.loads(result)["step"] == 2
    assert not any("step" in line for line in lines if line.startswith("me@127.0.0.1"))
    assert checkpoint_files.saved_steps(tmp_path / "a run" / "checkpoints") == [2]


SLEEPER = """
import os, signal, sys, time
process = next(a for a in sys.argv if a.startswith("--process-id="))[-1]
def stop(*_):
    print("saved", flush=True)
    sys.exit(75)
signal.signal(signal.SIGTERM, stop)
print("here", process, sys.argv[1], flush=True)
if os.environ.get("FAIL") == process:
    sys.exit(3)
time.sleep(1 if "FAIL" in os.environ else 600)
"""


def at_a_terminal(command: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
    """A command as an interactive shell starts it; a background job, which this may be, is deaf to Ctrl-C."""
    hearing = (
        "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    command = [sys.executable, "-c", hearing, *command]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)


def test_ctrl_c_stops_all_hosts_and_one_that_fails_decides_the_exit_code(tmp_path, fakes):
    (tmp_path / "main.py").write_text(SLEEPER)
    env = fakes(ssh=LOCAL_SSH) | {"FOLDER": str(tmp_path)}
    found = script("ssh-hosts.sh", "a b", "it's one", env=env | {"FAIL": "1"})
    assert found.returncode == 3
    assert "b ended with exit code 3" in found.stderr
    assert sorted(found.stdout.splitlines()) == ["a: here 0 it's one", "b: here 1 it's one"]
    # A machine that is gone ends its ssh.
    assert {"ServerAliveInterval=15", "ConnectTimeout=15"} <= set(pathlib.Path(env["LOG"]).read_text().splitlines())

    command = ["bash", str(LAUNCH / "ssh-hosts.sh"), "a b", "x"]
    running = at_a_terminal(command, env)
    assert sorted(running.stdout.readline() for _ in "ab") == ["a: here 0 x\n", "b: here 1 x\n"]
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does
    try:
        output, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 75
    assert sorted(output.splitlines()) == ["a: saved", "b: saved"]


def test_what_a_run_prints_in_the_form_of_its_number_is_never_executed(tmp_path, fakes):
    injected = f"jtasks-pid 1; touch {tmp_path / 'executed'}"
    (tmp_path / "main.py").write_text(f"print({injected!r}, flush=True)\n" + SLEEPER)
    command = ["bash", str(LAUNCH / "ssh-hosts.sh"), "a", "x"]
    running = at_a_terminal(command, fakes(ssh=LOCAL_SSH) | {"FOLDER": str(tmp_path)})
    assert running.stdout.readline() == f"a: {injected}\n"
    assert running.stdout.readline() == "a: here 0 x\n"
    os.killpg(running.pid, signal.SIGINT)
    try:
        running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert running.returncode == 75
    assert not (tmp_path / "executed").exists()


GCLOUD = 'HOME=$(dirname "$LOG") exec bash -c "${9#--command=}"'


def test_a_tpu_slice_runs_the_command_on_all_workers_and_tells_its_exit_code(tmp_path, fakes):
    (tmp_path / "main.py").write_text("import sys; print(sys.argv[1:]); sys.exit(75)")
    env = fakes(gcloud=f'printf "%s\\n" "${{@:1:8}}" >"$LOG"\n{GCLOUD}') | {"FOLDER": str(tmp_path)}
    found = script("tpu-vm.sh", "pod", "zone-a", "--workdir=a b", "it's $1", env=env)
    assert (found.returncode, found.stdout) == (75, """['--workdir=a b', "it's $1"]\n"""), found.stderr
    words = ["compute", "tpus", "tpu-vm", "ssh", "pod", "--zone=zone-a", "--worker=all"]
    assert pathlib.Path(env["LOG"]).read_text().splitlines() == [*words, "--ssh-flag=-o ServerAliveInterval=15"]


def test_a_run_on_a_tpu_slice_that_ended_while_the_connection_was_lost_is_not_started_again(tmp_path, fakes):
    (tmp_path / "main.py").write_text("import sys; open('starts', 'a').write('x'); print('failed'); sys.exit(1)")
    again = f'bash -c "${{9#--command=}}" >/dev/null\n{GCLOUD}'  # as gcloud does after ssh's exit code 255
    env = fakes(gcloud=f'export HOME=$(dirname "$LOG")\n{again}') | {"FOLDER": str(tmp_path)}
    for starts in ("x", "xx"):  # the same command, given again, starts it again
        found = script("tpu-vm.sh", "pod", "zone-a", "x", env=env)
        assert (found.returncode, found.stdout) == (1, "failed\n"), found.stderr
        assert (tmp_path / "starts").read_text() == starts


def test_a_run_on_a_tpu_slice_outlives_the_connection_and_ctrl_c_stops_it(tmp_path, fakes):
    (tmp_path / "main.py").write_text(SLEEPER)
    env = fakes(gcloud=GCLOUD) | {"FOLDER": str(tmp_path)}
    command = ["bash", str(LAUNCH / "tpu-vm.sh"), "pod", "zone-a", "x", "--process-id=0"]
    lost = at_a_terminal(command, env)
    assert lost.stdout.readline() == "here 0 x\n"
    os.killpg(lost.pid, signal.SIGKILL)  # this machine, and with it the connection
    lost.communicate(timeout=60)
    running = at_a_terminal(command, env)
    assert running.stdout.readline() == "here 0 x\n"  # not started twice: the second line of the log is the end
    os.killpg(running.pid, signal.SIGINT)
    try:
        output, _ = running.communicate(timeout=60)
    finally:
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGKILL)
    assert (running.returncode, output) == (75, "saved\n")
    assert (tmp_path / "jtasks.log").read_text() == "here 0 x\nsaved\n"
