"""A SLURM cluster on this machine: the real controller and two daemons as two nodes, node1 and node2."""

import contextlib
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

from front_door import ROOT

PROGRAMS = ("munged", "mungekey", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "scancel", "unshare")

CONFIG = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthInfo=socket={folder}/munge,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/controller.pid
SlurmctldLogFile={folder}/controller.log
SlurmdPidFile={folder}/%n.pid
SlurmdLogFile={folder}/%n.log
SlurmdSpoolDir={folder}/%n
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=3600
SchedulerParameters=batch_sched_delay=1,bf_interval=1,sched_interval=1
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 Gres=gpu:4
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 Gres=gpu:4
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def lack() -> str:
    """Why there can be no cluster here; "" if there can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"SLURM is not installed: {', '.join(missing)}"
    return "" if os.geteuid() == 0 else "SLURM's daemons need root"


class Slurm:
    """The commands of a cluster."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        places = {"SLURM_CONF": str(folder / "slurm.conf"), "PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"}
        self.environment = {**os.environ, **places, "JAX_NUM_CPU_DEVICES": "1", "JTASKS_SECRET": "slurm"}

    def run(self, *command: str, **environment: str) -> str:
        ended = subprocess.run(
            command, env=self.environment | environment, cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert ended.returncode == 0, f"{' '.join(command)}: {ended.stderr}"
        return ended.stdout.strip()

    def submit(self, *arguments: str, **environment: str) -> str:
        """Queue a job; returns its number."""
        log = self.folder / "%x-%j.log"
        return self.run("sbatch", "--parsable", f"--output={log}", *arguments, **environment)

    def state(self, job: str) -> dict[str, str]:
        """What the controller knows about a job or a task of an array."""
        line = self.run("scontrol", "show", "job", "--oneliner", job)
        return dict(entry.partition("=")[::2] for entry in line.split() if "=" in entry)

    def await_state(self, job: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job is in one of the states."""
        end = time.monotonic() + seconds
        while (now := self.state(job))["JobState"] not in states:
            assert time.monotonic() < end, f"job {job}: {now}\n{self.logs()}"
            time.sleep(0.2)
        return now

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-4000:]}" for path in self.folder.glob("*.log"))


@contextlib.contextmanager
def cluster() -> Iterator[Slurm]:
    """Start the daemons, in a mount namespace where node1 and node2 are names of this machine, and end them."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as name:  # short: the path of a socket has 108 bytes at most
        folder = pathlib.Path(name)
        for path in ("state", "node1", "node2"):
            (folder / path).mkdir()
        gpus = [folder / f"gpu{i}" for i in range(4)]
        for gpu in gpus:
            gpu.touch()
        (folder / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={folder}/gpu[0-3]\n")
        (folder / "hosts").write_text(pathlib.Path("/etc/hosts").read_text() + "\n127.0.0.1 node1 node2\n")
        config = CONFIG.format(host=socket.gethostname(), folder=folder, ports=_free_ports(3))
        (folder / "slurm.conf").write_text(config)
        slurm = Slurm(folder)
        munge = ["munged", "--force", f"--socket={folder}/munge", f"--key-file={folder}/key"]
        munge += [f"--{kind}-file={folder}/munged.{kind}" for kind in ("pid", "log", "seed")]
        slurm.run("mungekey", f"--keyfile={folder}/key", "--create")
        daemons = []
        try:
            daemons.append(_daemon(slurm, "munge", [*munge, "--foreground", "--num-threads=2"]))
            _await(lambda: (folder / "munge").exists(), slurm)
            hosts = f"mount --bind {folder}/hosts /etc/hosts; exec"
            for command in ("slurmctld -D", "slurmd -D -N node1", "slurmd -D -N node2"):
                inside = ["unshare", "--mount", "sh", "-c", f"{hosts} {command}"]
                daemons.append(_daemon(slurm, command.split()[-1], inside))
            ready = ["sinfo", "--noheader", "--format=%T %D"]
            _await(lambda: slurm.run(*ready) == "idle 2", slurm)
            yield slurm
        finally:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                slurm.run("scancel", "--signal=KILL", "--full", "--state=RUNNING")
            for daemon in reversed(daemons):
                daemon.send_signal(signal.SIGTERM)
            for daemon in reversed(daemons):
                with contextlib.suppress(subprocess.TimeoutExpired):
                    daemon.wait(20)
                daemon.kill()


def _daemon(slurm: Slurm, name: str, command: list[str]) -> subprocess.Popen[bytes]:
    with (slurm.folder / f"{name}.out").open("wb") as out:
        return subprocess.Popen(command, env=slurm.environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)


def _await(done, slurm: Slurm, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(AssertionError):
            if done():
                return
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports
