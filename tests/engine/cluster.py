"""A Ray cluster of several nodes on this machine, in a process of its own: `python -m tests.engine.cluster`.

Prints the address, and for each line of its input adds a node with one CPU and prints the process of its raylet. Ends
with its input. The head has no CPU, so that all work is done by nodes that can be killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.conftest import ROOT, environment

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}


@dataclass
class RunningCluster:
    """A cluster of several nodes, and how to lose and add one."""

    process: subprocess.Popen[str]
    address: str
    nodes: list[psutil.Process] = field(default_factory=list)

    def add(self) -> None:
        """Start a node."""
        assert self.process.stdin
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        self.nodes.append(psutil.Process(_answer(self.process)["raylet"]))

    def workers_of(self, node: psutil.Process) -> list[psutil.Process]:
        """Return the processes of a node that do our work."""
        found = node.children(recursive=True)
        return [one for one in found if one.cmdline() and one.cmdline()[0].startswith("ray::_Worker")]

    def kill(self, number: int) -> None:
        """Kill all processes of a node at once, as a power cut does."""
        raylet = self.nodes.pop(number)
        for process in [raylet, *raylet.children(recursive=True)]:
            process.kill()

    def kill_head(self) -> None:
        """Kill the process that all machines of the cluster need (GCS)."""
        found = psutil.Process(self.process.pid).children(recursive=True)
        (head,) = [one for one in found if one.name() == "gcs_server"]
        head.kill()


@contextmanager
def running_cluster(nodes: int, log: Path, *version: str) -> Iterator[RunningCluster]:
    """Run a cluster during the block, which says that it is another version of Ray if one is given."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.cluster", *version], cwd=ROOT, env=environment(**TOKEN), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        try:
            cluster = RunningCluster(process, _answer(process)["address"])
            for _ in range(nodes):
                cluster.add()
            yield cluster
        finally:
            children = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for child in children:
                if child.is_running():
                    child.kill()


def _answer(process: subprocess.Popen[str]) -> dict:
    assert process.stdout
    for line in process.stdout:
        if line.startswith("{"):
            return json.loads(line)
    raise AssertionError("the cluster has ended")


def _main() -> None:
    import ray
    from ray.cluster_utils import Cluster

    if len(sys.argv) > 1:
        ray.__version__ = sys.argv[1]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    print(json.dumps({"address": cluster.address}), flush=True)
    for _ in sys.stdin:
        node = cluster.add_node(num_cpus=1)
        (raylet,) = node.all_processes["raylet"]
        print(json.dumps({"raylet": raylet.process.pid}), flush=True)


if __name__ == "__main__":
    _main()
