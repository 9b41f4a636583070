"""Restarts of a failed run: chooses the checkpoint, the hosts and the world size of each start."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from yolods.config import RunConfig
from yolods.distributed.rank_env import DEFAULT_PORT
from yolods.errors import UserError
from yolods.hosts.hostfile import Host
from yolods.launch.args import LaunchFlags
from yolods.launch.command import free_port, hosts_of, launcher_command
from yolods.launch.supervisor import Start, say
from yolods.system.humanize import plural
from yolods.watchdog.failures import Failure, read_failures

EXCEPTION = 1
"""Exit status of a rank that printed a traceback."""


class Restarts:
    """The starts of one training run."""

    def __init__(
        self,
        words: Sequence[str],
        flags: LaunchFlags,
        run_dir: Path,
        *,
        gpus: int,
        check: Callable[[Sequence[str], int], RunConfig],
        run: str = "",
        start: str = "",
        tell: Path | None = None,
    ) -> None:
        """
        Args:
            words: `train` and its flags, as typed.
            flags: the launcher's flags.
            run_dir: where the run writes.
            gpus: number of GPUs of this machine.
            check: builds the configuration from `train` and its flags, for a number of ranks;
                raises UserError if they cannot run.
            run: the run's identity: checkpoints of other runs are not resumed.
            start: the identity of this command: only a run that this command ended is over.
            tell: file in which a rank of this host writes which run it belongs to, if another
                host's launcher has claimed the folder; None: this one has.
        """
        self._words, self._flags, self._gpus = list(words), flags, gpus
        # Absolute, because leftover ranks are found by this path in their command lines, on hosts
        # with any working directory.
        self._run_dir = run_dir.absolute()
        self._check, self._run, self._start_id, self._tell = check, run, start, tell
        self._failed: dict[int | None, set[Failure | None]] = defaultdict(set)
        """Failures of earlier starts, by the step that these resumed from (None: they began anew).

        The failure None stands for one that left no record.
        """

    def first(self) -> Start:
        """The run as typed."""
        return self._start(self._named(), self._flags, "")

    def _named(self) -> list[str]:
        """The typed words, with the run's folder and the identity of this command."""
        return [*self._words, *self._place()]

    def _place(self) -> list[str]:
        if self._tell is not None:
            return ["--tell", str(self._tell)]
        return [
            "--run-dir",
            str(self._run_dir),
            *(["--start-id", self._start_id] if self._start_id else []),
        ]

    def again(self, status: int) -> Start | int:
        """The next start, from the newest checkpoint on the remaining hosts; or an exit status.

        It is a status if the run is over, cannot be started, or would fail again: an exception that
        occurred twice after the same checkpoint is expected a third time. A port that was taken
        does not count as such, since the next start uses another one.

        Args:
            status: exit status of the last start.
        """
        # In this order: the ranks' message names the run, without which nothing else can be read.
        self._listen()
        if (over := self._over()) is not None:
            return over
        step = newest_step(self._run_dir, self._run)
        where = "the beginning" if step is None else f"step {step}"
        # With `_tell`, the launcher that claimed the folder reads the failures.
        failures = read_failures(self._run_dir, self._start_id) if self._tell is None else set()
        taken = any(failure.port_taken for failure in failures)
        if not taken and (same := self._known(step, status, failures)):
            name = next(f" with the same {each.type}" if each else "" for each in same)
            say(f"two starts from {where} failed before the next checkpoint{name}: giving up")
            return status
        # Without a checkpoint there is nothing to resume, and the run starts over as typed.
        words = self._named()
        if step is not None and not _resumes(words):
            words = [
                "train",
                "--resume",
                *([] if self._tell is None else [str(self._run_dir)]),
                *self._place(),
            ]
        try:
            if taken:
                self._flags = _with_another_port(
                    self._flags, hosts_of(self._flags, gpus=self._gpus)
                )
            flags, ranks = self._layout(words)
            return self._start(words, flags, f"from {where} on {plural(ranks, 'rank')}")
        except UserError as error:
            say(f"the run cannot be restarted: {error}")
            return status

    def _known(self, step: int | None, status: int, failures: set[Failure]) -> set[Failure | None]:
        """Failures of this start that an earlier start from the same checkpoint also had."""
        # The status alone does not decide: it is that of the rank which the launcher polled first,
        # and this may be a rank that only ended because another one had failed.
        if status != EXCEPTION and all(failure.of_another for failure in failures):
            return set()
        found: set[Failure | None] = {*failures} or {None}
        same = found & self._failed[step]
        self._failed[step] |= found
        return same

    def _listen(self) -> None:
        """Read which run this is from the file that a rank wrote."""
        if self._tell is not None and self._tell.is_file():
            folder, self._run, self._start_id = json.loads(self._tell.read_text(encoding="utf-8"))
            self._run_dir = Path(folder)

    def _over(self) -> int | None:
        """The exit status of the run if this command finished it, or stopped it on request, at its
        newest checkpoint; else None.

        The launcher's own status may differ: it may have been killed with the ranks, or hosts may
        report different ones.
        """
        from yolods.checkpoint.verify import end_of

        end = end_of(self._run_dir / "checkpoints")
        mine = end is not None and (end.run, end.start) == (self._run, self._start_id)
        return end.status if mine and end.step == newest_step(self._run_dir, self._run) else None

    def _layout(self, words: Sequence[str]) -> tuple[LaunchFlags, int]:
        """Flags and world size for the hosts that answer, with as many slots as can be used."""
        hosts = hosts_of(self._flags, gpus=self._gpus)
        # The other launchers need no ssh between hosts, and a scheduler takes care of failed ones.
        by_ssh = not self._flags.no_ssh and self._flags.launcher == "pdsh"
        far = by_ssh and not all(host.is_local for host in hosts)
        left = _answering(hosts, self._run_dir, self._flags.ssh_port) if far else hosts
        if not left:
            raise UserError("none of its hosts answers")
        slots = [(host.name, slot) for host in left for slot in host.chosen]
        fault: UserError | None = None
        for count in range(len(slots), 0, -1):
            try:
                self._check(words, count)
            except UserError as error:
                fault = fault or error  # report why the largest world size does not work
                continue
            if count == sum(len(host.chosen) for host in hosts):
                return self._flags, count
            assert far, "there are fewer ranks only if hosts are gone"
            # The user's --master_addr is the first host's; another first host has its own.
            address = self._flags.master_addr if left[0] == hosts[0] else None
            chosen = _include(slots[:count])
            return replace(
                self._flags, include=chosen, exclude="", num_gpus=None, master_addr=address
            ), count
        assert fault is not None
        raise fault

    def _start(self, words: Sequence[str], flags: LaunchFlags, about: str) -> Start:
        command, variables = launcher_command(words, flags, gpus=self._gpus, python=sys.executable)
        return Start(command, variables, about)


def newest_step(run_dir: Path, run: str) -> int | None:
    """The optimizer step of the run's newest checkpoint by name, or None.

    The ranks verify the checkpoint later and fall back to an earlier one if it is damaged.
    """
    from yolods.checkpoint.verify import names_in, step_of

    names = names_in(run_dir / "checkpoints", run)
    return step_of(names[-1])[0] if names else None


def _with_another_port(flags: LaunchFlags, hosts: Sequence[Host]) -> LaunchFlags:
    """Flags with another rendezvous port.

    Raises:
        UserError: a start on every host cannot change its port alone.
    """
    port = flags.master_port or (DEFAULT_PORT if len(hosts) > 1 else None)
    if flags.no_ssh:
        raise UserError(
            f"port {port or DEFAULT_PORT} of the first host is taken; give every host another "
            "--master_port"
        )
    if port is None:
        say("the rendezvous port was taken meanwhile; using another one")
        return flags  # a local start takes a free one each time
    while (other := free_port()) == port:  # it may be free again, but the message promises another
        pass
    say(f"rendezvous port {port} is taken; using {other}")
    return replace(flags, master_port=other)


def _answering(hosts: Sequence[Host], run_dir: Path, port: int | None) -> list[Host]:
    """The hosts that answer, after processes that the run left on them are ended."""
    from yolods.hosts.probe import ProbeRequest
    from yolods.hosts.remote import Caller, ask, clear

    answers = ask(hosts, ProbeRequest(), Caller(Path.cwd(), sys.executable, {}, port), local=False)
    for answer in answers:
        if answer.report is None:
            say(f"excluding host {answer.host.name}: {answer.problem}")
    left = [answer.host for answer in answers if answer.report is not None]
    clear(left, run_dir, port)
    return left


def _include(slots: Sequence[tuple[str, int]]) -> str:
    """The value of DeepSpeed's --include for these slots: host:slot,slot@host:slot."""
    names = dict.fromkeys(name for name, _ in slots)
    return "@".join(
        f"{name}:{','.join(str(slot) for host, slot in slots if host == name)}" for name in names
    )


def _resumes(words: Sequence[str]) -> bool:
    return any(word == "--resume" or word.startswith("--resume=") for word in words)
