"""What to start after a run has died: from which checkpoint, on which of its hosts, and on how many ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from yolods.cluster.hosts import Host
from yolods.cluster.launch import LaunchFlags, hosts_of, launcher_command
from yolods.cluster.supervise import Start
from yolods.cluster.words import plural
from yolods.config import CONFIG_FILE, RunConfig
from yolods.errors import UserError

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
    ) -> None:
        """
        Args:
            words: `train` and its flags, as typed.
            run_dir: where the run writes.
            gpus: of this machine.
            check: reads words for so many ranks; raises UserError where they cannot be run.
        """
        self._words, self._flags, self._run_dir, self._gpus = list(words), flags, run_dir, gpus
        self._check = check
        self._failed_after: set[int | None] = set()

    def first(self) -> Start:
        """The run as typed."""
        words = self._words if _resumes(self._words) else [*self._words, "--run-dir", str(self._run_dir)]
        return self._start(words, self._flags, "")

    def again(self, status: int) -> Start | None:
        """From the newest checkpoint, on the hosts that are left; None and a line where that cannot be, or is no use:
        an exception that has come twice after the same checkpoint comes a third time.

        Args:
            status: with which the last start has ended.
        """
        step = newest_step(self._run_dir)
        where = "the beginning" if step is None else f"step {step}"
        if status == EXCEPTION and step in self._failed_after:
            _say(f"two starts from {where} have failed before the next checkpoint: giving up")
            return None
        if status == EXCEPTION:
            self._failed_after.add(step)
        words = self._words
        if step is not None and (self._run_dir / CONFIG_FILE).is_file():
            words = ["train", "--resume", str(self._run_dir)]
        elif not _resumes(words):
            words = [*words, "--run-dir", str(self._run_dir)]
        try:
            flags, ranks = self._layout(words)
        except UserError as error:
            _say(f"it cannot be started again: {error}")
            return None
        return self._start(words, flags, f"from {where} on {plural(ranks, 'rank')}")

    def _layout(self, words: Sequence[str]) -> tuple[LaunchFlags, int]:
        """The hosts that answer, and of their slots as many as the configuration can be run on."""
        hosts = hosts_of(self._flags, gpus=self._gpus)
        near = self._flags.no_ssh or all(host.is_local for host in hosts)
        left = hosts if near else _answering(hosts)
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
            assert not self._flags.no_ssh, "every host starts its own ranks"
            return replace(self._flags, include=_include(slots[:count]), exclude="", num_gpus=None), count
        assert fault is not None
        raise fault

    def _start(self, words: Sequence[str], flags: LaunchFlags, about: str) -> Start:
        command, variables = launcher_command(words, flags, gpus=self._gpus, python=sys.executable)
        return Start(command, variables, about)


def newest_step(run_dir: Path) -> int | None:
    """The optimizer step of the newest checkpoint, as names go; None: there is none. Whether it is whole, the ranks
    find out, and take an earlier one if not."""
    from yolods.checkpoint.verify import names_in, step_of

    names = names_in(run_dir / "checkpoints")
    return step_of(names[-1])[0] if names else None


def _answering(hosts: Sequence[Host]) -> list[Host]:
    from yolods.cluster.probe import Request
    from yolods.cluster.reach import Caller, ask

    answers = ask(hosts, Request(), Caller(Path.cwd(), sys.executable, {}), local=False)
    for answer in answers:
        if answer.report is None:
            _say(f"{answer.host.name} is left out: {answer.problem}")
    return [answer.host for answer in answers if answer.report is not None]


def _include(slots: Sequence[tuple[str, int]]) -> str:
    """DeepSpeed's filter for these slots."""
    names = dict.fromkeys(name for name, _ in slots)
    return "@".join(f"{name}:{','.join(str(slot) for host, slot in slots if host == name)}" for name in names)


def _resumes(words: Sequence[str]) -> bool:
    return any(word == "--resume" or word.startswith("--resume=") for word in words)


def _say(text: str) -> None:
    print(f"yolods: {text}", file=sys.stderr, flush=True)
