"""Detection of the processes of a run, from the environment variables of their launcher.

JAX detects clusters too (`jax.distributed.initialize()` without arguments), but JAX aborts or waits for minutes if an
environment is incomplete, counts the tasks of a SLURM allocation instead of the step, gives the only process of a node
a single GPU, and needs further packages on Kubernetes and TPU. So this module reads the variables and passes the
result to JAX.
"""

import importlib.util
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import NamedTuple

from jtasks.errors import ConfigError

# Any port that is free on the first process's machine would do; these are JAX's own choices.
TPU_PORT, KUBERNETES_PORT, LOWEST_JOB_PORT, JOB_PORTS = 8482, 55527, 61440, 4096
STEP_STRIDE = 251  # between the ports of a job's steps, so that they differ from those of the next jobs
METADATA = "/computeMetadata/v1/instance/attributes/"

Environment = Mapping[str, str]


class Cluster(NamedTuple):
    """A run of several processes, seen from one of them."""

    launcher: str  # what started the processes, for messages
    coordinator: str  # HOST:PORT where process 0 listens
    processes: int  # number of processes
    process: int  # index of this process, from 0
    device: int | None = None  # the only local GPU that this process may use; None: all
    job: str = ""  # the launcher's name of this run, equal on its processes alone; "": the launcher gives none


def detect(environ: Environment) -> Cluster | None:
    """Return the run that this process belongs to; None if it is alone, or if the variables are incomplete.

    Tries in this order: JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID (or the index of a
    Kubernetes Indexed Job or JobSet), a TPU pod, Open MPI, a step of SLURM. JAX_COORDINATOR_PORT sets the port.
    Open MPI comes before SLURM because mpirun starts its daemons as a step of SLURM.

    Raises:
      ConfigError: Open MPI started processes on several machines and does not say where the first one runs.
    """
    for launcher in (_variables, _tpu_variables, _tpu_metadata, _open_mpi, _slurm):
        cluster = launcher(environ)
        if cluster is not None and cluster.processes > 1 and 0 <= cluster.process < cluster.processes:
            return cluster
    return None


def partly(environ: Environment) -> str:
    """Describe variables that suggest a run of several processes but are incomplete; "" if there are none."""
    hints = {
        "SLURM_NTASKS": "a step of srun has SLURM_PROCID, SLURM_LOCALID and SLURM_STEP_NODELIST as well",
        "OMPI_COMM_WORLD_SIZE": "mpirun sets OMPI_COMM_WORLD_RANK as well",
        "JAX_NUM_PROCESSES": "JAX_COORDINATOR_ADDRESS and JAX_PROCESS_ID belong to it",
    }
    for name, rest in hints.items():
        if (_integer(environ, name) or 0) > 1 and environ.get("SLURM_STEP_NUM_TASKS") != "1":
            return f"{name}={environ[name]}, but {rest}"
    return ""


def _variables(environ: Environment) -> Cluster | None:
    """Detect variables set by hand, or by the manifest of a JobSet, where JOB_COMPLETION_INDEX is the process."""
    host = environ.get("JAX_COORDINATOR_ADDRESS", "")
    count, index = _integer(environ, "JAX_NUM_PROCESSES"), _integer(environ, "JAX_PROCESS_ID")
    launcher = "the environment"
    if index is None:
        launcher, index = "Kubernetes", _integer(environ, "JOB_COMPLETION_INDEX")
    if not host or count is None or index is None:
        return None
    return Cluster(launcher, host if _has_port(host) else _address(environ, host, KUBERNETES_PORT), count, index)


def _tpu_variables(environ: Environment) -> Cluster | None:
    """Detect a TPU pod on Google Kubernetes Engine, of one slice or several."""
    hosts = _split(environ.get("TPU_WORKER_HOSTNAMES", ""))
    worker = _integer(environ, "TPU_WORKER_ID")
    return None if worker is None or not hosts else _slices(environ, hosts, worker, environ)


def _tpu_metadata(environ: Environment) -> Cluster | None:
    """Detect TPU VMs of Google Compute Engine from their metadata server; GCE_METADATA_IP replaces its address."""
    # Without TPU chips, importing jax sets TPU_SKIP_MDS_QUERY.
    on_tpu = "TPU_SKIP_MDS_QUERY" not in environ and importlib.util.find_spec("libtpu") is not None
    alone = "TPU_PROCESS_BOUNDS" in environ or "tpu" not in environ.get("JAX_PLATFORMS", "tpu")
    if not (on_tpu and not alone) and "GCE_METADATA_IP" not in environ:
        return None
    fetch = _fetcher(environ.get("GCE_METADATA_IP", "metadata.google.internal"))
    worker, workers = fetch("agent-worker-number"), fetch("worker-network-endpoints")
    if not worker.isdecimal() or not workers:
        return None
    hosts = [entry.split(":")[-1] for entry in _split(workers)]  # HOST, or NAME:ID:HOST
    slices = dict(re.findall(r"^\s*(MEGASCALE_\w+)\s*:\s*'?([^'\n]*?)'?\s*$", fetch("tpu-env"), re.MULTILINE))
    return _slices(environ, hosts, int(worker), {**slices, **environ})


def _slices(environ: Environment, hosts: list[str], worker: int, slices: Environment) -> Cluster:
    """Count the workers slice by slice; all slices have equally many."""
    count, index = _integer(slices, "MEGASCALE_NUM_SLICES") or 1, _integer(slices, "MEGASCALE_SLICE_ID") or 0
    first = slices.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]
    coordinator = _address(environ, first.split(":")[0], TPU_PORT)
    return Cluster("TPU", coordinator, len(hosts) * count, worker + index * len(hosts))


def _slurm(environ: Environment) -> Cluster | None:
    """Detect a task of srun. A shell inside an allocation has some of the variables without being one of several."""
    names = ("SLURM_JOB_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
    job, process, local, tasks = (_integer(environ, name) for name in names)
    nodes = environ.get("SLURM_STEP_NODELIST", "")
    if job is None or process is None or local is None or tasks is None or not nodes:
        return None
    step_tasks = _integer(environ, "SLURM_STEP_NUM_TASKS")  # SLURM_NTASKS may count the whole allocation
    step = _integer(environ, "SLURM_STEP_ID") or 0
    port = LOWEST_JOB_PORT + (job + STEP_STRIDE * step) % JOB_PORTS
    coordinator = _address(environ, first_host(nodes), port)
    here = _tasks_here(environ)
    count = tasks if step_tasks is None else step_tasks
    name = f"{environ.get('SLURM_CLUSTER_NAME', '')} job {job} step {step}".strip()
    return Cluster("SLURM", coordinator, count, process, _device(environ, local, here), name)


def _open_mpi(environ: Environment) -> Cluster | None:
    """Detect a process of mpirun.

    In an allocation of SLURM rank 0 runs on the first node, wherever mpirun itself does. Elsewhere it runs on mpirun's
    host, which the variables name up to version 4, unless the list of hosts leaves that host out.
    """
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
    count, process, local = (_integer(environ, name) for name in names)
    if count is None or process is None or local is None or count < 2:
        return None
    here, uri = _integer(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"), environ.get("OMPI_MCA_orte_hnp_uri", "")
    launcher = re.match(r"(\d+)\..*?(?:tcp://([^,:]+)|tcp6://\[([^],]+))", uri)
    job, host = 0, environ.get("JAX_COORDINATOR_ADDRESS", "")
    host = host or first_host(environ.get("SLURM_JOB_NODELIST", ""))
    if launcher:
        job, host = int(launcher[1]) // 2**12, host or launcher[2] or launcher[3]
    if not host and here == count:
        host = "localhost"
    if not host:
        raise ConfigError(
            f"Open MPI started {count} processes on several machines and does not say where the first one runs:"
            " give its address, as in mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"
        )
    coordinator = host if _has_port(host) else _address(environ, host, LOWEST_JOB_PORT + job % JOB_PORTS)
    name = environ.get("PMIX_NAMESPACE", "")
    return Cluster("Open MPI", coordinator, count, process, _device(environ, local, here), name)


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM list of nodes.

    >>> first_host("node7"), first_host("gpu[003-005,9],cpu1"), first_host("a1,b2")
    ('node7', 'gpu003', 'a1')
    """
    prefix, first, suffix = re.match(r"([^,\[]*)(?:\[([^\],-]*)[^\]]*\])?([^,\[]*)", nodes).groups()  # type: ignore[union-attr]
    return f"{prefix}{first or ''}{suffix}"


def _tasks_here(environ: Environment) -> int | None:
    """Return this node's number of tasks from, for example, SLURM_STEP_TASKS_PER_NODE=4(x2),1."""
    counts: list[int] = []
    for count, repeats in re.findall(r"(\d+)(?:\(x(\d+)\))?", environ.get("SLURM_STEP_TASKS_PER_NODE", "")):
        counts += [int(count)] * int(repeats or 1)
    node = _integer(environ, "SLURM_NODEID")
    return counts[node] if node is not None and node < len(counts) else None


def _device(environ: Environment, local: int, here: int | None) -> int | None:
    """Return the GPU of this process if several share a machine, unless the launcher gave each its own GPU."""
    visible = _split(environ.get("CUDA_VISIBLE_DEVICES", ""))
    if here == 1 or "JAX_LOCAL_DEVICE_IDS" in environ or (visible and local >= len(visible)) or len(visible) == 1:
        return None
    return local


def _fetcher(server: str) -> Callable[[str], str]:
    def fetch(attribute: str) -> str:
        request = urllib.request.Request(f"http://{server}{METADATA}{attribute}", headers={"Metadata-Flavor": "Google"})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the server is never behind a proxy
        try:
            with opener.open(request, timeout=5) as answer:
                return answer.read().decode().strip()
        except (urllib.error.URLError, OSError):  # no such attribute, or no such server
            return ""

    return fetch


def _address(environ: Environment, host: str, port: int) -> str:
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"{host}:{environ.get('JAX_COORDINATOR_PORT') or port}"


def _has_port(address: str) -> bool:
    return re.fullmatch(r"(\[[^]]+\]|[^:]+):\d+", address) is not None


def _integer(environ: Environment, name: str) -> int | None:
    text = environ.get(name, "").strip()
    return int(text) if re.fullmatch(r"\d{1,18}", text) else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]
