"""A Dask cluster of processes, if wanted in network namespaces: hosts whose cable can be pulled."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

from predict_runs import environment, until

DASK = Path(sys.executable).with_name("dask")


class Network:
    """Hosts on a bridge, each a network namespace of this machine; with a ``with`` block.

    Raises:
        OSError: this machine makes none, for instance for want of rights.
    """

    def __init__(self, hosts: int):
        self._hosts = hosts
        self._prefix = f"sf{uuid.uuid4().hex[:6]}"

    def __enter__(self) -> Network:
        try:
            self._ip(f"netns add {self._bridge}")
            self._ip(f"-n {self._bridge} link add bridge type bridge")
            self._ip(f"-n {self._bridge} link set bridge up")
            for host in range(self._hosts):
                self._add(host)
        except OSError:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for name in [self._bridge, *map(self.name, range(self._hosts))]:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    @property
    def _bridge(self) -> str:
        return f"{self._prefix}b"

    def name(self, host: int) -> str:
        """Of the namespace of a host."""
        return f"{self._prefix}h{host}"

    def address(self, host: int) -> str:
        """Of a host."""
        return f"10.99.7.{host + 1}"

    def cut(self, host: int) -> None:
        """Pull the cable of a host."""
        self._ip(f"-n {self._bridge} link set {self._prefix}p{host} down")

    def host_of(self, pid: int) -> int:
        """The host that a process runs on."""
        name = self._ip(f"netns identify {pid}").strip()
        return next(host for host in range(self._hosts) if self.name(host) == name)

    def _add(self, host: int) -> None:
        name, port = self.name(host), f"{self._prefix}p{host}"
        self._ip(f"netns add {name}")
        self._ip(f"link add {port} netns {self._bridge} type veth peer name eth0 netns {name}")
        self._ip(f"-n {self._bridge} link set {port} master bridge up")
        self._ip(f"-n {name} addr add {self.address(host)}/24 dev eth0")
        self._ip(f"-n {name} link set eth0 up")
        self._ip(f"-n {name} link set lo up")

    def _ip(self, words: str) -> str:
        done = subprocess.run(["ip", *words.split()], capture_output=True, text=True)
        if done.returncode:
            raise OSError(done.stderr.strip())
        return done.stdout


class Cluster:
    """A scheduler and workers; with a ``with`` block.

    Args:
        folder: for what they leave.
        faults: the folder that the predictor is told of.
        workers: how many.
        network: hosts: 0 is the scheduler's, the following ones are the workers'.

    Attributes:
        address: of the scheduler.
    """

    def __init__(self, folder: Path, faults: Path, workers: int, network: Network | None = None):
        self._folder, self._environment = folder, environment(faults)
        if network is not None:  # a host that says nothing for some seconds is lost
            self._environment["DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL"] = "3s"
        self._workers, self._network = workers, network
        self._processes: list[subprocess.Popen] = []
        self.address = ""

    def __enter__(self) -> Cluster:
        try:
            file = self._folder / "scheduler.json"
            self._start(0, "scheduler", "--scheduler-file", file, "--port", "0", "--no-dashboard")
            until(lambda: file.exists() and file.read_text().endswith("}"))
            self.address = json.loads(file.read_text())["address"]
            for number in range(self._workers):
                options = ["--nthreads", "1", "--no-dashboard", "--local-directory", self._folder]
                if self._network is not None:  # Dask waits 30 s for a nanny that was cut off
                    options.append("--no-nanny")
                self._start(number + 1, "worker", self.address, "--name", number, *options)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.kill()  # a worker ends with the process that watches it
            process.wait()

    def prefix(self, host: int) -> list[str]:
        """What starts a command on a host."""
        return [] if self._network is None else ["ip", "netns", "exec", self._network.name(host)]

    def _start(self, host: int, *words: object) -> None:
        with open(self._folder / f"dask{len(self._processes)}.log", "wb") as log:
            command = [*self.prefix(host), str(DASK), *map(str, words)]
            if self._network is not None:
                command += ["--host", self._network.address(host)]
            self._processes.append(
                subprocess.Popen(
                    command, env=self._environment, cwd=self._folder, stdout=log, stderr=log
                )
            )
