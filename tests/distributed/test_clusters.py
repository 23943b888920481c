"""What launchers put into the environment, and what of it makes a process one of several."""

import functools
import http.server
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jtasks.distributed import clusters
from jtasks.distributed.clusters import Cluster, first_host, partly
from jtasks.errors import ConfigError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_ID": "2",
    "SLURM_STEP_NODELIST": "gpu[07-09,12]",
    "SLURM_NTASKS": "6",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2),1,1",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "PMIX_NAMESPACE": "1531576321",
}
JOBSET = {
    "KUBERNETES_SERVICE_HOST": "10.0.0.1",
    "JAX_COORDINATOR_ADDRESS": "run-workers-0-0.run",
    "JAX_NUM_PROCESSES": "4",
    "JOB_COMPLETION_INDEX": "3",
}
TPU_POD = {"TPU_WORKER_HOSTNAMES": "w0,w1", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_COORDINATOR_ADDRESS": "first:8080", "MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}


def detect(environ):
    """As in a process that has imported jax on a machine without TPU chips: it asks no metadata server by itself."""
    return clusters.detect({"TPU_SKIP_MDS_QUERY": "1", **environ})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (SLURM, Cluster("SLURM", "gpu07:61943", 6, 3, 1, "job 4097 step 2")),
        (OPEN_MPI, Cluster("Open MPI", "10.96.0.1:62624", 4, 2, None, "1531576321")),
        (JOBSET, Cluster("Kubernetes", "run-workers-0-0.run:55527", 4, 3)),
        (TPU_POD, Cluster("TPU", "w0:8482", 2, 1)),
        (TPU_POD | SLICES, Cluster("TPU", "first:8482", 6, 5)),
        (
            {"JAX_COORDINATOR_ADDRESS": "[::1]:99", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"},
            Cluster("the environment", "[::1]:99", 2, 0),
        ),
    ],
)
def test_each_launcher_is_recognized_and_the_port_can_be_set(environment, expected):
    assert detect(environment) == expected
    port = detect(environment | {"JAX_COORDINATOR_PORT": "5000"}).coordinator.rpartition(":")[2]
    assert port == ("99" if "[::1]" in expected.coordinator else "5000")


@given(st.sampled_from([SLURM, OPEN_MPI, JOBSET, TPU_POD | SLICES]), st.data())
def test_an_environment_set_in_part_leaves_the_process_alone_or_names_a_possible_run(whole, data):
    certain = whole.keys() & {"OMPI_MCA_orte_hnp_uri"}  # its lack may be an error, below
    names = st.sampled_from(sorted(whole.keys() - certain))
    kept = data.draw(st.sets(names)) | certain
    broken = data.draw(st.dictionaries(names, st.sampled_from(["", "x", "-1", "9"]), max_size=1))
    found = detect({name: whole[name] for name in kept} | broken)
    assert found is None or 0 <= found.process < found.processes
    assert found is None or kept | broken.keys() >= {name for name in whole if name.endswith(("PROCID", "RANK"))}


@pytest.mark.parametrize(
    "lost", ["SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID"]
)
def test_without_any_one_of_its_variables_slurm_is_not_there(lost):
    rest = {name: value for name, value in SLURM.items() if name != lost}
    assert detect(rest) is None
    assert ("SLURM_NTASKS=6" in partly(rest)) == (lost != "SLURM_NTASKS")


def test_processes_of_mpirun_in_a_slurm_allocation_are_not_its_daemons_tasks():
    daemon = SLURM | {"SLURM_STEP_NODELIST": "gpu08", "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}
    rank = detect(OPEN_MPI | daemon | {"SLURM_JOB_NODELIST": "gpu[07-08]"})
    assert rank == Cluster("Open MPI", "gpu07:62624", 4, 2, None, "1531576321")  # rank 0 is on the first node
    own = detect(OPEN_MPI | SLURM | {"SLURM_JOB_NODELIST": "gpu[07-08]"} | {"JAX_COORDINATOR_ADDRESS": "b:1"})
    assert own is not None
    assert own.coordinator == "b:1"


def test_the_steps_of_a_job_and_the_next_jobs_have_ports_of_their_own():
    steps = [(job, step) for job in range(40, 80) for step in range(8)]
    found = [detect(SLURM | {"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)}) for job, step in steps]
    assert len({cluster.coordinator for cluster in found if cluster}) == len(steps)


def test_a_shell_in_an_allocation_is_alone_though_the_allocation_has_many_tasks():
    assert detect(SLURM | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}) is None
    assert partly(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) == ""
    assert detect({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize(
    ("change", "device"),
    [
        ({}, 1),
        ({"SLURM_NODEID": "3"}, None),  # alone on its node: all of its GPUs
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, 1),
        ({"CUDA_VISIBLE_DEVICES": "5"}, None),  # bound by the launcher: its GPU is the only one
        ({"JAX_LOCAL_DEVICE_IDS": "2,3"}, None),  # JAX reads this itself
    ],
)
def test_tasks_that_share_a_node_take_one_gpu_each(change, device):
    found = detect(SLURM | change)
    assert found is not None
    assert found.device == device


def test_open_mpi_5_does_not_tell_where_the_first_process_is():
    five = {name: value for name, value in OPEN_MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
    with pytest.raises(ConfigError, match="mpirun -x JAX_COORDINATOR_ADDRESS=HOST:PORT"):
        detect(five)
    assert detect(five | {"JAX_COORDINATOR_ADDRESS": "a:1"}) == Cluster("Open MPI", "a:1", 4, 2, None, "1531576321")
    here = detect(five | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert here is not None
    assert (here.coordinator, here.device) == ("localhost:61440", 0)


@given(st.from_regex(r"[a-z][a-z-]{0,5}", fullmatch=True), st.lists(st.from_regex(r"[0-9]{1,4}", fullmatch=True)))
def test_the_first_host_of_a_list_is_found(prefix, numbers):
    ranges = ",".join(f"{number}-{number}9" for number in numbers)
    nodes = f"{prefix}[{ranges}],other[1-2]" if numbers else f"{prefix},other"
    assert first_host(nodes) == prefix + (numbers[0] if numbers else "")


class Metadata(http.server.BaseHTTPRequestHandler):
    """A metadata server with the attributes of worker 1 of the second of two slices."""

    def __init__(self, attributes: dict[str, str], *arguments):
        self.attributes = attributes
        super().__init__(*arguments)

    def do_GET(self):
        name = self.path.removeprefix("/computeMetadata/v1/instance/attributes/")
        known = name in self.attributes and self.headers["Metadata-Flavor"] == "Google"
        self.send_response(200 if known else 404)
        self.end_headers()
        self.wfile.write(self.attributes.get(name, "").encode())

    def log_message(self, *arguments):
        pass


@pytest.fixture
def serve():
    servers = []

    def begin(attributes: dict[str, str]) -> str:
        servers.append(http.server.HTTPServer(("127.0.0.1", 0), functools.partial(Metadata, attributes)))
        threading.Thread(target=servers[-1].serve_forever, args=(0.01,), daemon=True).start()
        return f"127.0.0.1:{servers[-1].server_port}"

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def test_tpu_vms_ask_the_metadata_server(serve):
    pod = {"agent-worker-number": "1", "worker-network-endpoints": "a:1:10.0.0.1,b:2:10.0.0.2"}
    assert detect({"GCE_METADATA_IP": serve(pod)}) == Cluster("TPU", "10.0.0.1:8482", 2, 1)
    slices = "TPU: 'v5'\nMEGASCALE_COORDINATOR_ADDRESS: '10.9.0.1'\nMEGASCALE_NUM_SLICES: '2'\nMEGASCALE_SLICE_ID: '1'"
    assert detect({"GCE_METADATA_IP": serve(pod | {"tpu-env": slices})}) == Cluster("TPU", "10.9.0.1:8482", 4, 3)
    assert detect({"GCE_METADATA_IP": serve({"agent-worker-number": "0"})}) is None
    assert detect({"GCE_METADATA_IP": "127.0.0.1:9"}) is None
