"""What to start after a run has died: from which checkpoint, on which of its hosts, and on how many ranks."""

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
"""Exit status of a rank that has shown a traceback."""


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
            run_dir: where the run writes.
            gpus: of this machine.
            check: reads words for so many ranks; raises UserError where they cannot be run.
            run: the run's identity: no other's checkpoints are gone on with.
            start: of this command: no other's end is this one's.
            tell: where a rank of this host says which run it is, if another host's launcher has claimed the folder.
        """
        self._words, self._flags, self._gpus = list(words), flags, gpus
        self._run_dir = run_dir.absolute()  # by which its ranks are found, whatever folder they stand in
        self._check, self._run, self._start_id, self._tell = check, run, start, tell
        self._failed: dict[int | None, set[Failure | None]] = defaultdict(set)
        """What starts have failed with, by the checkpoint that they came from; None: with what, is not known."""

    def first(self) -> Start:
        """The run as typed."""
        return self._start(self._named(), self._flags, "")

    def _named(self) -> list[str]:
        """What was typed, with the run's folder in it and whose that is."""
        return [*self._words, *self._place()]

    def _place(self) -> list[str]:
        if self._tell is not None:
            return ["--tell", str(self._tell)]
        return ["--run-dir", str(self._run_dir), *(["--start-id", self._start_id] if self._start_id else [])]

    def again(self, status: int) -> Start | int:
        """From the newest checkpoint, on the hosts that are left. A number: nothing, and with what to end; because the
        run is over, because it cannot be started, or because it is no use: an exception that has come twice after the
        same checkpoint comes a third time. Not so a port that was taken: the next start has another one.

        Args:
            status: with which the last start has ended.
        """
        self._listen()
        if (over := self._over()) is not None:
            return over
        step = newest_step(self._run_dir, self._run)
        where = "the beginning" if step is None else f"step {step}"
        failures = (
            read_failures(self._run_dir, self._start_id) if self._tell is None else set()
        )  # else another host reads them
        taken = any(failure.port_taken for failure in failures)
        if not taken and (same := self._known(step, status, failures)):
            name = next(f" with the same {each.type}" if each else "" for each in same)
            say(f"two starts from {where} have failed before the next checkpoint{name}: giving up")
            return status
        words = self._named()
        if step is not None and not _resumes(words):
            words = ["train", "--resume", *([] if self._tell is None else [str(self._run_dir)]), *self._place()]
        try:
            if taken:
                self._flags = _with_another_port(self._flags, hosts_of(self._flags, gpus=self._gpus))
            flags, ranks = self._layout(words)
            return self._start(words, flags, f"from {where} on {plural(ranks, 'rank')}")
        except UserError as error:
            say(f"it cannot be started again: {error}")
            return status

    def _known(self, step: int | None, status: int, failures: set[Failure]) -> set[Failure | None]:
        """What a start has failed with that another one from the same checkpoint had failed with."""
        # Which of several ranks the launcher has looked at first decides its status: the others were lost by then.
        if status != EXCEPTION and all(failure.of_another for failure in failures):
            return set()
        found: set[Failure | None] = {*failures} or {None}
        same = found & self._failed[step]
        self._failed[step] |= found
        return same

    def _listen(self) -> None:
        """Hear from the ranks which run it is."""
        if self._tell is not None and self._tell.is_file():
            folder, self._run, self._start_id = json.loads(self._tell.read_text(encoding="utf-8"))
            self._run_dir = Path(folder)

    def _over(self) -> int | None:
        """The status of a run that this command has brought to its end, or that was stopped on request, at its newest
        checkpoint; None: neither.

        The launcher's own status may be another one: it was killed beside the ranks, or several hosts gave several.
        """
        from yolods.checkpoint.verify import end_of

        end = end_of(self._run_dir / "checkpoints")
        mine = end is not None and (end.run, end.start) == (self._run, self._start_id)
        return end.status if mine and end.step == newest_step(self._run_dir, self._run) else None

    def _layout(self, words: Sequence[str]) -> tuple[LaunchFlags, int]:
        """The hosts that answer, and of their slots as many as the configuration can be run on."""
        hosts = hosts_of(self._flags, gpus=self._gpus)
        # Under the other launchers hosts need not let anybody in, and are looked after by the scheduler.
        far = not self._flags.no_ssh and self._flags.launcher == "pdsh" and not all(host.is_local for host in hosts)
        left = _answering(hosts, self._run_dir, self._flags.ssh_port) if far else hosts
        if not left:
            raise UserError("no host of it answers")
        slots = [(host.name, slot) for host in left for slot in host.chosen]
        fault: UserError | None = None
        for count in range(len(slots), 0, -1):
            try:
                self._check(words, count)
            except UserError as error:
                fault = fault or error  # what is said is why not on all that are left
                continue
            if count == sum(len(host.chosen) for host in hosts):
                return self._flags, count
            assert far, "only where hosts are gone are there fewer ranks"
            address = self._flags.master_addr if left[0] == hosts[0] else None
            chosen = _include(slots[:count])
            return replace(self._flags, include=chosen, exclude="", num_gpus=None, master_addr=address), count
        assert fault is not None
        raise fault

    def _start(self, words: Sequence[str], flags: LaunchFlags, about: str) -> Start:
        command, variables = launcher_command(words, flags, gpus=self._gpus, python=sys.executable)
        return Start(command, variables, about)


def newest_step(run_dir: Path, run: str) -> int | None:
    """The optimizer step of the run's newest checkpoint, as names go; None: there is none. Whether it is whole, the
    ranks find out, and take an earlier one if not."""
    from yolods.checkpoint.verify import names_in, step_of

    names = names_in(run_dir / "checkpoints", run)
    return step_of(names[-1])[0] if names else None


def _with_another_port(flags: LaunchFlags, hosts: Sequence[Host]) -> LaunchFlags:
    """Flags with which ranks meet at another port.

    Raises:
        UserError: a start on every host cannot change its port alone.
    """
    port = flags.master_port or (DEFAULT_PORT if len(hosts) > 1 else None)
    if flags.no_ssh:
        raise UserError(
            f"port {port or DEFAULT_PORT} of the first host is taken; give every host another --master_port"
        )
    if port is None:
        say("the port at which ranks meet was taken meanwhile; they meet at another")
        return flags  # a local start takes a free one each time
    while (other := free_port()) == port:  # it may have come free meanwhile, but another was promised
        pass
    say(f"port {port}, at which ranks meet, is taken; they meet at {other}")
    return replace(flags, master_port=other)


def _answering(hosts: Sequence[Host], run_dir: Path, port: int | None) -> list[Host]:
    """Those that answer, and on which nothing is left of the run."""
    from yolods.hosts.probe import ProbeRequest
    from yolods.hosts.remote import Caller, ask, clear

    answers = ask(hosts, ProbeRequest(), Caller(Path.cwd(), sys.executable, {}, port), local=False)
    for answer in answers:
        if answer.report is None:
            say(f"{answer.host.name} is left out: {answer.problem}")
    left = [answer.host for answer in answers if answer.report is not None]
    clear(left, run_dir, port)
    return left


def _include(slots: Sequence[tuple[str, int]]) -> str:
    """DeepSpeed's filter for these slots."""
    names = dict.fromkeys(name for name, _ in slots)
    return "@".join(f"{name}:{','.join(str(slot) for host, slot in slots if host == name)}" for name in names)


def _resumes(words: Sequence[str]) -> bool:
    return any(word == "--resume" or word.startswith("--resume=") for word in words)
