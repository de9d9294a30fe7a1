"""Machines that are namespaces of this one: each has its own address, processes, and files.

They hang on a switch, whose wires can be cut. Nothing of it is seen outside, and all of it ends
with the process that began it (`enter_private_world`). Needs root, iproute2 and util-linux.

    10.77.0.1       the switch, where the storage listens
    10.77.0.2 ...   the machines

A machine shares the packages with the others, as by an image, and sees nothing else of theirs: the
repository is hidden, and so are shared memory, temporary files and Ray's session.
"""

import os
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
PRIVATE = "/run/cprec"
"""A folder of its own of each machine, short because sockets are below it."""

INSIDE = "CPREC_IN_NAMESPACES"
NETWORK = "10.77.0"
SWITCH = f"{NETWORK}.1"


def enter_private_world() -> None:
    """Starts this program again in namespaces of its own, with a switch; returns only in there."""
    if os.environ.get(INSIDE):
        for preparation in (
            "mount --make-rprivate /",
            f"mkdir -p /run/netns {PRIVATE}",
            "mount -t tmpfs tmpfs /run/netns",
            f"mount -t tmpfs tmpfs {PRIVATE}",
            "ip link set lo up",
            "ip link add switch type bridge",
            f"ip address add {SWITCH}/24 dev switch",
            "ip link set switch up",
        ):
            run(preparation)
        return
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    # Python's own path is kept as it is, so that the world inside finds the same packages.
    os.execvpe(command[0], [*command, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def run(command: str) -> None:
    """Runs a command to its end; its output is the message if it fails."""
    ended = subprocess.run(shlex.split(command), capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"


@dataclass
class Machine:
    """A machine on the switch, and the process that it was started for.

    Attributes:
        number: Its number, from 1; its host name, address and wire follow from it.
        process: The process; all others of the machine end with it.
        log: File with its output.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def address(self) -> str:
        return address_of(self.number)

    @property
    def wire(self) -> str:
        return f"wire{self.number}"

    def command(self, *command: str) -> list[str]:
        """Returns a command that runs another one on this machine, in the repository."""
        [first] = psutil.Process(self.process.pid).children()
        enter = ["nsenter", f"--target={first.pid}", "--net", "--mount", "--pid", "--uts", "--ipc"]
        return [*enter, f"--wd={ROOT}", *command]

    def remove(self) -> None:
        """Ends all its processes at once, as without power, and takes its wire away."""
        self.process.kill()
        self.process.wait()
        subprocess.run(["ip", "link", "delete", self.wire], check=False, capture_output=True)
        subprocess.run(
            ["ip", "netns", "delete", f"m{self.number}"], check=False, capture_output=True
        )


def address_of(number: int) -> str:
    """Returns the address of a machine."""
    return f"{NETWORK}.{number + 1}"


def start_machine(
    number: int, command: str, environment: dict[str, str], log: Path, *, has_repository: bool
) -> Machine:
    """Starts a machine with a process.

    Args:
        number: Its number, from 1 to 9.
        command: What the process does, for a shell.
        environment: Variables of its processes, beside ours.
        log: File for its output.
        has_repository: Whether it sees the repository, as the machine of a driver does.
    """
    name, wire, address = f"m{number}", f"wire{number}", address_of(number)
    run(f"ip netns add {name}")
    run(f"ip link add {wire} type veth peer name eth0 netns {name}")
    run(f"ip link set {wire} master switch up")
    for inside in (
        "link set lo up",
        f"address add {address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {SWITCH}",
    ):
        run(f"ip -n {name} {inside}")
    hosts = "".join(f"{address_of(each)} m{each}\\n" for each in range(1, 10))
    begin = [
        "mount --make-rprivate /",
        f"mount -t tmpfs tmpfs {PRIVATE}",
        f"mkdir {PRIVATE}/tmp {PRIVATE}/injected",
        "mount -t tmpfs tmpfs /dev/shm",
        f"printf '127.0.0.1 localhost\\n{hosts}' > {PRIVATE}/hosts",
        f"mount --bind {PRIVATE}/hosts /etc/hosts",
        f"hostname {name}",
        f"mount --bind {ROOT}/tests/faults/injected {PRIVATE}/injected",
    ]
    if not has_repository:
        prefix = shlex.quote(sys.prefix)  # it may be in the repository
        begin += [
            f"mount --bind {prefix} /mnt",
            f"mount -t tmpfs tmpfs {shlex.quote(str(ROOT))}",
            f"mkdir -p {prefix}",
            f"mount --bind /mnt {prefix}",
        ]
    isolate = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
    shell = ["sh", "-ec", "\n".join([*begin, f"cd {PRIVATE}", f"exec {command}"])]
    with log.open("ab") as output:
        process = subprocess.Popen(
            ["ip", "netns", "exec", name, *isolate, "--mount-proc", *shell],
            env={**os.environ, **environment, "TMPDIR": f"{PRIVATE}/tmp"},
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    return Machine(number, process, log)


def set_cut(first: Machine, second: Machine | None, is_cut: bool) -> None:
    """Cuts the way between two machines, or mends it. What is sent is lost without a word.

    Args:
        first: A machine.
        second: The other one; None: everything else.
        is_cut: Whether the way is cut.
    """
    if second is None:
        run(f"ip link set {first.wire} {'down' if is_cut else 'up'}")
        return
    # A switch passes nothing between two isolated wires, and all between these and others.
    for machine in (first, second):
        run(f"ip link set {machine.wire} type bridge_slave isolated {'on' if is_cut else 'off'}")


def wait_until_line(machine: Machine, line: str, limit_s: float) -> None:
    """Waits until the log of a machine has a line."""
    end = time.monotonic() + limit_s
    while line not in machine.log.read_text(errors="replace"):
        assert machine.process.poll() is None, machine.log.read_text(errors="replace")[-2000:]
        assert time.monotonic() < end, f"no {line!r} in {machine.log}"
        time.sleep(0.2)
