"""The Slurm script, run with stand-ins for Slurm's commands and rondo that write down what they were told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy" / "slurm" / "rondo.sbatch"

# srun without a node of its own does what it is told here; the others write a line each and behave as the test says.
STAND_INS = {
    "scontrol": 'echo "scontrol $*" >>"$CALLS"; [[ $1 == show ]] && printf "%s\\n" "${HEAD:-node1}" node{2,3} || true',
    "srun": 'echo "srun $*" >>"$CALLS"; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "ray": """
echo "ray $*" >>"$CALLS"
[[ -z ${REFUSED:-} ]] || exit 3
sleep 0.5  # a real one takes longer
[[ $* != *--head* ]] || echo "the head listens" >>"$CALLS"
[[ $* != *--head* ]] || exec python3 -c 'import socket, sys, time
head = socket.create_server(("127.0.0.1", int(sys.argv[1]))); time.sleep(60)' "${3#--port=}"
exec sleep 60
""",
    "torchrun": 'echo "torchrun $*" >>"$CALLS"; [[ $(grep -c ^torchrun "$CALLS") -gt 1 ]] || exit 1; exec sleep 60',
    "rondo": """
case $1 in
    rounds) [[ -n ${EXISTS:-} ]] ;;
    *)
        trap 'echo ended >>"$CALLS"; exit 130' TERM
        echo "rondo $*" >>"$CALLS"
        until grep -qE "^torchrun|ray start --address" "$CALLS"; do sleep 0.05; done
        sleep "${WORK:-0}" &
        wait
        exit "${CODE:-0}"
        ;;
esac
""",
}


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        (folder / name).write_text(f"#!/bin/bash\n{body}\n")
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "CALLS": str(tmp_path / "calls"), "RONDO_ROOT": "s3://b/runs",
        "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_NODELIST": "node[1-3]", "SLURM_JOB_ID": "41",
    }  # fmt: skip


def calls(environment: dict[str, str]) -> list[str]:
    path = Path(environment["CALLS"])
    return path.read_text().splitlines() if path.exists() else []


def wait_for(environment: dict[str, str], call: str) -> None:
    until = time.monotonic() + 60
    while not any(made.startswith(call) for made in calls(environment)):
        assert time.monotonic() < until
        time.sleep(0.05)


def test_its_form() -> None:
    for command in (["bash", "-n"], [str(Path(sys.executable).parent / "shellcheck")]):
        done = subprocess.run([*command, str(SCRIPT)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_other_nodes_share_the_updates_of_the_head(environment: dict[str, str]) -> None:
    """Torchrun fails there at first, and is started again."""
    command = ["bash", str(SCRIPT), "r.yaml", "demo", "--set", "seed=1"]
    given = {**environment, "SLURM_GPUS_ON_NODE": "8", "WORK": "3"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    made = calls(environment)
    started = (
        "torchrun --nnodes=3 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=node1:20041 "
        "--rdzv-conf=is_host=false,read_timeout=86400 -m flows.remote.rank_main --root s3://b/runs"
    )
    assert [call for call in made if call.startswith("torchrun")] == [started, started]
    assert any(call.startswith("srun --nodes=2 --ntasks=2 --exclude=node1 bash -c") for call in made)
    shared = "--set devices.trainer_nodes=3 --set devices.trainer_ranks=8 --set devices.trainer_address=node1:20041"
    assert f"rondo run r.yaml --name demo --set seed=1 {shared}" in made
    assert not any("requeue" in call for call in made)
    # A signal to srun kills what it started.
    assert not any(call.startswith("srun") and "rondo run" in call for call in made)


def test_a_run_that_is_there_goes_on_and_its_failure_is_the_jobs(environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), "r.yaml", "demo"]
    given = {**environment, "EXISTS": "1", "CODE": "7"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 7
    assert any(call.startswith("rondo resume demo --set devices.trainer_nodes=3") for call in calls(environment))


def test_a_ray_cluster_in_its_place(environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), "r.yaml", "demo"]
    given = {**environment, "RONDO_RAY": "1", "HEAD": "127.0.0.1"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    made = calls(environment)
    assert "ray start --address=127.0.0.1:20041 --block" in made
    run = "rondo run r.yaml --name demo --set cluster.address=127.0.0.1:20041"
    assert made.index("the head listens") < made.index(run)


def test_no_run_without_the_head_of_its_cluster(environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), "r.yaml", "demo"]
    given = {**environment, "RONDO_RAY": "1", "HEAD": "127.0.0.1", "REFUSED": "1"}
    done = subprocess.run(command, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert not any(call.startswith("rondo run") for call in calls(environment))


def test_the_end_of_its_time_ends_the_run_in_order_and_queues_it_again(environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), "r.yaml", "demo"]
    with subprocess.Popen(command, env={**environment, "WORK": "60"}) as job:
        wait_for(environment, "rondo run")
        job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 130
    made = calls(environment)
    assert made.index("ended") < made.index("scontrol requeue 41")


def test_several_signals_end_it_as_one_does(environment: dict[str, str]) -> None:
    """Slurm sends one before the time is up and another when it is: the run is ending by then, or has ended."""
    commands = Path(environment["CALLS"]).parent / "bin"
    rondo, slow_end = commands / "rondo", 'trap \'echo "is ending" >>"$CALLS"; sleep 2;'
    rondo.write_text(rondo.read_text().replace("trap '", slow_end))
    last = 'echo join >>"$CALLS"; trap \'echo "last one" >>"$CALLS"; sleep 2; exit\' TERM; while sleep 0.1; do :; done'
    (commands / "srun").write_text(f"#!/bin/bash\n{last}\n")
    with subprocess.Popen(["bash", str(SCRIPT), "r.yaml", "demo"], env={**environment, "WORK": "60"}) as job:
        for sign in ("rondo run", "is ending", "last one"):
            wait_for(environment, sign)
            job.send_signal(signal.SIGTERM)
        assert job.wait(60) == 130
    made = calls(environment)
    assert made.index("ended") < made.index("last one") < made.index("scontrol requeue 41")
