"""Two hosts on one machine: Linux namespaces for network, processes and hostname, and a virtual cable between them.

When a host's first process ends, the kernel ends its other processes and removes its network. Therefore hosts of tests
that run at once stay apart, and none outlives its test.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.trainer_processes import ENVIRONMENT, ROOT

from moco_accel.processes.signals import die_with_parent

PORT = 29_500
_HOST = "hostname {name}; ip link set lo up; exec sleep infinity"


def missing_requirement() -> str:
    """Return why hosts cannot be made here; empty if they can."""
    missing = [tool for tool in ("ip", "nsenter", "unshare", "hostname") if shutil.which(tool) is None]
    if missing:
        return f"no {', '.join(missing)} here"
    if os.geteuid():
        return "only root may make hosts"
    tried = subprocess.run(["unshare", "--net", "--uts", "--pid", "--fork", "true"], capture_output=True, text=True)
    return tried.stderr.strip()


class Host:
    """A host. Each process that runs on it has a log in `folder`."""

    def __init__(self, name: str, address: str, folder: Path) -> None:
        self.name, self.address, self._folder = name, address, folder
        self._spaces = ["unshare", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            [*self._spaces, "sh", "-c", _HOST.format(name=name)], preexec_fn=die_with_parent
        )
        self.first = _child_of(self._holder.pid)

    def connect_to(self, other: Host) -> None:
        """Connect by a cable; the interface is eth0 on both hosts."""
        ends = ["type", "veth", "peer", "name", "eth0", "netns", str(other.first)]
        _call(["ip", "link", "add", "eth0", "netns", str(self.first), *ends])
        for host in (self, other):
            host.call("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.call("ip", "link", "set", "eth0", "up")

    def resolve(self, **names: str) -> None:
        """Make this host resolve names; otherwise it does not resolve even its own."""
        hosts = self._folder / f"{self.name}.hosts"
        lines = [f"{address} {name}\n" for name, address in {"localhost": "127.0.0.1", **names}.items()]
        hosts.write_text("".join(lines))
        self.call("mount", "--bind", str(hosts), "/etc/hosts")

    def call(self, *command: str) -> str:
        """Run a short command and return what it prints."""
        return _call([*self._enter(), *command])

    def start(self, command: list[str], log: str = "output", **variables: str) -> subprocess.Popen[bytes]:
        with self._log(log).open("w") as file:
            return subprocess.Popen(
                [*self._enter(), *command], env=ENVIRONMENT | variables, stdout=file, stderr=file, cwd=ROOT
            )

    def output(self, log: str = "output") -> str:
        return self._log(log).read_text()

    def alive(self) -> list[str]:
        """Return the command lines of all its processes but the first."""
        inside = Path(f"/proc/{self.first}/ns/net").readlink()
        found = []
        for process in Path("/proc").iterdir():
            if not process.name.isdigit() or int(process.name) in (self.first, self._holder.pid):
                continue
            with suppress(OSError):
                is_zombie = (process / "stat").read_text().rpartition(")")[2].split()[0] in "ZX"
                if (process / "ns/net").readlink() == inside and not is_zombie:
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def cut_off(self) -> None:
        """Disconnect the cable."""
        self.call("ip", "link", "set", "eth0", "down")

    def lose_packets_to(self, other: Host) -> None:
        """Keep the cable, but send packets for `other` to a network card that does not exist."""
        self.call(
            "ip", "neigh", "replace", other.address, "lladdr", "02:00:00:00:00:99", "dev", "eth0", "nud", "permanent"
        )

    def end(self) -> None:
        self._holder.kill()
        with suppress(ProcessLookupError):
            os.kill(self.first, signal.SIGKILL)
        self._holder.wait()

    def _log(self, name: str) -> Path:
        return self._folder / f"{self.name}.{name}.log"

    def _enter(self) -> list[str]:
        return ["nsenter", "--target", str(self.first), "--net", "--uts", "--pid", "--mount", f"--wd={ROOT}"]


@contextmanager
def two_hosts(folder: Path) -> Iterator[tuple[Host, Host]]:
    """Yield `north` at 10.77.0.1 and `south` at 10.77.0.2, which reach each other and nothing else."""
    hosts = []
    try:
        for name, address in (("north", "10.77.0.1"), ("south", "10.77.0.2")):
            hosts.append(Host(name, address, folder))
        hosts[0].connect_to(hosts[1])
        yield hosts[0], hosts[1]
    finally:
        for host in hosts:
            host.end()


def wait_until_gone(hosts: tuple[Host, Host], seconds: float) -> float:
    """Wait at most `seconds` until all processes have ended; return how long it took."""
    begun = time.monotonic()
    while any(host.alive() for host in hosts) and time.monotonic() - begun < seconds:
        time.sleep(0.05)
    return time.monotonic() - begun


def _call(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def _child_of(process: int) -> int:
    """Return the child of `process`, once it runs `sleep`."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/cmdline").read_bytes().startswith(b"sleep"):
            return int(children[0])
        time.sleep(0.01)
    raise AssertionError("the host did not start")
