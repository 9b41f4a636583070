"""Two hosts on one machine: namespaces with ssh, host names and cables that can be cut.

    switch: a network namespace with a bridge
       |                        |
    alpha, eth0, 10.77.0.1   beta, lan0, 10.77.0.2

Each host has network, mount, process and host-name namespaces of its own, and an sshd that accepts
the other host without a password. It sees this machine's files unless something is mounted over
them. As on Debian, each host resolves its own name to 127.0.1.1, and the interfaces have different
names.

Everything belongs to three processes and ends with them: no interface, mount or process remains.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

START_SECONDS = 20.0
"""Time limit for the start of a host, which takes a fraction of a second on an idle machine."""
COMMAND_SECONDS = 10.0
NETWORK = "10.77.0."
TOOLS = {
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "pdsh": "pdsh",
    "ip": "iproute2",
    "unshare": "util-linux",
}
"""Command -> its Debian package."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# PID 1 of a host. It is bash, because PID 1 must reap orphaned processes.
INIT = """set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/sshd
for file in hosts passwd shadow ssh/ssh_config; do mount --bind "$1/${file##*/}" "/etc/$file"; done
hostname "$2"
ip link set lo up
/usr/sbin/sshd -D -e -f "$1/sshd_config" &
touch "$1/started"
while :; do wait || :; sleep 1; done
"""

# ClientAlive: a session ends after its other end was cut off.
SSHD = """Port 22
HostKey {folder}/host_key
AuthorizedKeysFile {shared}/key.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
UseDNS no
PidFile none
ClientAliveInterval 2
ClientAliveCountMax 2
SetEnv PATH={folder}/bin:{path}
"""

SSH = """Host alpha beta
    IdentityFile {shared}/key
    IdentitiesOnly yes
    UserKnownHostsFile {shared}/known_hosts
    StrictHostKeyChecking yes
"""


@dataclass(frozen=True, kw_only=True)
class TestHost:
    """One of the two hosts."""

    __test__ = False  # else pytest collects the class because of its name

    name: str
    address: str
    interface: str
    folder: Path
    """Its own files; its `bin` is first on the PATH of ssh sessions."""
    pid: int
    """Its PID 1, in this machine's numbering."""

    def words(self, words: Sequence[str | Path], cwd: Path = Path("/")) -> list[str]:
        """The command that runs `words` on the host, with their exit status."""
        entered = [
            "nsenter",
            "-t",
            str(self.pid),
            "-n",
            "-m",
            "-u",
            "-p",
            "--",
            "env",
            f"HOME={self.home}",
        ]
        return [*entered, "sh", "-c", 'cd "$0" && exec "$@"', str(cwd), *map(str, words)]

    @property
    def home(self) -> Path:
        """Its user's home folder."""
        return self.folder / "home"

    def run(self, *words: str | Path, env: Mapping[str, str] | None = None) -> str:
        """The output of a short command on the host.

        Raises:
            AssertionError: it failed, or took longer than 10 s.
        """
        return _run(self.words(words), env)

    def tool(self, name: str, text: str) -> Path:
        """Put a script on the PATH of ssh sessions."""
        file = self.folder / "bin" / name
        file.write_text(text, encoding="utf-8")
        file.chmod(0o755)
        return file

    @contextmanager
    def covered(self, path: Path, text: str | None = None) -> Iterator[None]:
        """In this context a file has another content on the host, or a folder is empty."""
        if text is None:
            self.run("mount", "-t", "tmpfs", "tmpfs", path)
        else:
            stand_in = self.folder / f"covers-{abs(hash((path, text)))}"
            stand_in.write_text(text, encoding="utf-8")  # not executable
            self.run("mount", "--bind", stand_in, path)
        try:
            yield
        finally:
            self.run("umount", "--lazy", path)


@dataclass(frozen=True)
class TwoHosts:
    """Both hosts and the switch between them."""

    first: TestHost
    second: TestHost
    switch: int
    """Process whose network namespace contains the bridge."""
    folder: Path

    def hostfile(self, slots: int = 1, second: int | None = None) -> Path:
        """Write a hostfile of both hosts."""
        file = self.folder / "hostfile"
        lines = [f"{self.first.name} slots={slots}", f"{self.second.name} slots={second or slots}"]
        file.write_text("\n".join([*lines, ""]), encoding="utf-8")
        return file

    def cut(self, host: TestHost) -> None:
        """Pull a host's cable: packets are lost without an error."""
        _in_switch(self.switch, "ip", "link", "set", host.name, "down")

    def mend(self, host: TestHost) -> None:
        """Plug the cable in again, and wait until the host answers."""
        _in_switch(self.switch, "ip", "link", "set", host.name, "up")
        deadline = time.monotonic() + COMMAND_SECONDS
        other = self.first if host == self.second else self.second
        while time.monotonic() < deadline:
            if (
                subprocess.run(
                    other.words(["ssh", "-o", "ConnectTimeout=1", host.name, "true"])
                ).returncode
                == 0
            ):
                return
        raise AssertionError(
            f"{host.name} is not reached {COMMAND_SECONDS:g} s after its cable was mended"
        )


def why_not() -> str:
    """Why this machine cannot have two hosts; "" if it can."""
    if os.geteuid() != 0:
        return "two hosts on one machine take root"
    missing = [
        package
        for tool, package in TOOLS.items()
        if not shutil.which(tool, path=f"{os.environ['PATH']}:{PATH}")
    ]
    if missing:
        return (
            f"two hosts on one machine take {', '.join(missing)}: apt-get install "
            f"{' '.join(missing)}"
        )
    tried = (
        "mount -t tmpfs tmpfs /run && ip link add tried type bridge && ip link add t1 type veth "
        "peer name t2"
    )
    done = subprocess.run(
        [
            "unshare",
            "-n",
            "-m",
            "-u",
            "-p",
            "-f",
            "--kill-child",
            "--mount-proc",
            "sh",
            "-c",
            tried,
        ],
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    return (
        ""
        if done.returncode == 0
        else f"this machine does not allow namespaces: {done.stderr.strip()[-200:]}"
    )


@contextmanager
def two_hosts(folder: Path) -> Iterator[TwoHosts]:
    """Both hosts, in this context.

    Args:
        folder: an empty folder for their files.
    """
    _write_keys(folder)
    holders = [_hold(["-n", "sleep", "infinity"], folder / "switch.log")]
    try:
        switch = holders[0].pid
        _wait_until(lambda: _own_network(switch), holders[0], folder / "switch.log")
        _in_switch(switch, "ip", "link", "add", "bridge", "type", "bridge")
        _in_switch(switch, "ip", "link", "set", "bridge", "up")
        hosts = []
        for number, (name, interface) in enumerate((("alpha", "eth0"), ("beta", "lan0")), 1):
            holder, pid = _start_host(name, number, folder)
            holders.append(holder)
            host = TestHost(
                name=name,
                address=f"{NETWORK}{number}",
                interface=interface,
                folder=folder / name,
                pid=pid,
            )
            _plug_in(host, switch)
            hosts.append(host)
        both = TwoHosts(hosts[0], hosts[1], switch, folder)
        both.mend(both.second)  # returns when the host answers
        both.mend(both.first)
        yield both
    finally:
        for holder in holders:
            holder.kill()  # also ends its PID 1, and so every process of the host
            holder.wait()


def _write_keys(folder: Path) -> None:
    known = []
    for path in (folder / "key", folder / "alpha" / "host_key", folder / "beta" / "host_key"):
        (path.parent / "bin").mkdir(parents=True)
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", path])
        known.append(f"{path.parent.name} {path.with_suffix('.pub').read_text()}")
    (folder / "known_hosts").write_text("".join(known[1:]), encoding="utf-8")


def _start_host(name: str, number: int, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start a host without a cable; returns the process of its namespaces, and its PID 1."""
    own, log = folder / name, folder / f"{name}.log"
    others = {1: f"{NETWORK}2 beta", 2: f"{NETWORK}1 alpha"}
    (own / "home").mkdir()
    users = Path("/etc/passwd").read_text(encoding="utf-8").splitlines()
    # An empty home, so that the shell reads no start files of a user.
    root = f"root:x:0:0:root:{own / 'home'}:/bin/bash"
    texts = {
        "passwd": "\n".join([root, *(user for user in users if not user.startswith("root:")), ""]),
        "hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n{others[number]}\n",
        "shadow": "root:*:19000:0:99999:7:::\n",  # sshd refuses an account locked with "!"
        "ssh_config": SSH.format(shared=folder),
        "sshd_config": SSHD.format(folder=own, shared=folder, path=PATH),
        "init": INIT,
    }
    for file, text in texts.items():
        (own / file).write_text(text, encoding="utf-8")
    apart = ["-n", "-m", "-u", "-p", "-f", "--kill-child", "--mount-proc"]
    holder = _hold([*apart, "bash", str(own / "init"), str(own), name], log)
    try:
        _wait_until((own / "started").exists, holder, log)
        return holder, psutil.Process(holder.pid).children()[0].pid
    except BaseException:
        holder.kill()
        holder.wait()
        raise


def _hold(words: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start `unshare` with these words; the kernel kills it when this process ends."""
    with log.open("wb") as written:
        return subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *words],
            env={"PATH": PATH},
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=written,
            start_new_session=True,
        )


def _plug_in(host: TestHost, switch: int) -> None:
    end = ("name", host.interface, "netns", str(host.pid))
    _in_switch(switch, "ip", "link", "add", host.name, "type", "veth", "peer", *end)
    _in_switch(switch, "ip", "link", "set", host.name, "master", "bridge", "up")
    host.run("ip", "address", "add", f"{host.address}/24", "dev", host.interface)
    host.run("ip", "link", "set", host.interface, "up")


def _own_network(pid: int) -> bool:
    return os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")


def _in_switch(switch: int, *words: str) -> None:
    _run(["nsenter", "-t", str(switch), "-n", "--", *words])


def _wait_until(true: Callable[[], bool], holder: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not true():
        assert holder.poll() is None and time.monotonic() < deadline, (
            f"no host came up: {log.read_text()}"
        )
        time.sleep(0.02)


def _run(words: Sequence[str | Path], env: Mapping[str, str] | None = None) -> str:
    words = [str(word) for word in words]
    done = subprocess.run(
        words,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:{PATH}", **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=COMMAND_SECONDS,
    )
    assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
    return done.stdout
