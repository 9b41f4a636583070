"""Sees to it that no run hangs: beats for this rank, hears the others, and ends the process when one of them is lost.

    main thread      marks what it is in (`phases`)
    watchdog         ticks ten times a second: counts time and whose it is (`collective_waits`),
                     judges (`failure_detector`), ends the run
    exchange         once a second: puts this rank's beat on the store and reads others'; it may wait for ever
    sidecar          a process: ends this rank where its own threads no longer can

Rank 0 hears all ranks, and what it finds goes to the others over the store; they hear rank 0. Where the store itself
does not answer, rank 0 or its host is what was lost.

A process that is ended here leaves with LOST, and its threads' stacks in logs/stacks-rank<r>.txt of the run's folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from yolods.distributed.phases import PHASES, Standing
from yolods.distributed.store import KeyValueStore
from yolods.distributed.world import LOST, Ranks
from yolods.errors import UserError
from yolods.system import interrupt
from yolods.watchdog.failure_detector import Alarm, FailureDetector, Heartbeat, Stragglers
from yolods.watchdog.failures import is_connection
from yolods.watchdog.sidecar import ASKED, Sidecar

if TYPE_CHECKING:
    from yolods.config.deepspeed.yolods_block import WatchdogConfig

log = logging.getLogger(__name__)

NODE_LAUNCHERS = ("deepspeed.launcher.launch", "yolods.launch.node_launcher")
"""What starts the ranks of a host: DeepSpeed's own, and ours."""
TICK, BEAT = 0.1, 1.0
"""Seconds."""
LONGEST_TICK = 1.0
"""What a tick counts at most: a process that was suspended for longer has not been slow."""
UNREACHABLE_SECONDS = 2.0
"""From a refused connection to the store on, in which a run that ends in good order has ended."""
FAREWELL_SECONDS = 2.5
"""What rank 0 waits before it takes the store down with itself, so that the others read why."""
ALONE_SECONDS = 60.0
"""What ranks whose launcher is gone have to take a last step and save."""
WINDOW_SECONDS, WINDOW_STEPS = 10.0, 5
"""Over at least so much the time of a step is averaged, before ranks are compared."""


# Wide: the state of one rank, which its own thread and the main thread share.
class Watchdog:
    """Of one rank, around its work: `with Watchdog(...)`."""

    def __init__(self, kv_store: KeyValueStore, ranks: Ranks, policy: WatchdogConfig, folder: Path | None) -> None:
        """
        Args:
            folder: of the run, for stacks; None: none are written.
        """
        self._kv_store, self._ranks, self._policy, self._folder = kv_store, ranks, policy, folder
        self._detector, self._stragglers = FailureDetector(policy), Stragglers()
        self._exchange = _Exchange(kv_store.clone(), ranks)
        self._steps = _StepTimes()
        self._stop = threading.Event()
        self._beats = 0
        self._now, self._answers, self._answered = 0.0, 0, 0.0
        self._left: str | None = None
        self._broken = False
        self._news: list[str] = []
        self._launcher = _Launcher.mine()
        self._alone_since: float | None = None
        self._sidecar: Sidecar | None = None

    def __enter__(self) -> Watchdog:
        if self._policy.enabled:
            # Later than the others find it out: they know more to say.
            self._sidecar = Sidecar(self._ranks.name, self._policy.silence_seconds + 2 * BEAT)
            self._exchange.beat = self._beat(Standing(PHASES.now, 0.0, None), False)
            if self._ranks.is_main:
                self._kv_store.put("verdict", None)  # so that a read finds every key, and asks once for all of them
            for work in (self._exchange.run, self._watch):
                threading.Thread(target=work, name=f"yolods {work.__qualname__}", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if not self._policy.enabled:
            return
        if error is None:
            PHASES.mark("the end")
            self._ranks.barrier()
        elif self._ranks.size > 1 and is_connection(error) and not interrupt.pressed():
            self._wait_for_verdict(error)
        if not isinstance(error, KeyboardInterrupt):
            self._left = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
            shown = isinstance(error, UserError) or interrupt.pressed()  # the first is for the command line to show
            if self._left and not shown:
                log.error("%s failed in %s: %s", self._ranks.name, PHASES.now, self._left)
            self._post()
        self._stop.set()
        self._exchange.stop.set()
        assert self._sidecar is not None
        self._sidecar.leave()

    def news(self) -> list[str]:
        """Lines about stragglers that nobody has been told yet. On rank 0."""
        told, self._news = self._news, []
        return told

    def step_seconds(self) -> dict[int, float]:
        """Seconds a step that each rank last took without waiting for others. On rank 0."""
        return self._stragglers.seconds()

    def _wait_for_verdict(self, error: BaseException) -> None:
        """Another rank is gone, and the watchdog's thread will say which, and end this process."""
        self._broken = True
        log.info("lost a connection: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        time.sleep(self._policy.silence_seconds + FAREWELL_SECONDS + 2 * BEAT)

    def _post(self) -> None:
        """Put a last beat on the store, from a thread of its own: it may wait for ever."""
        last = self._beat(Standing(PHASES.now, 0.0, None), False)
        poster = threading.Thread(target=lambda: self._exchange.put(last), daemon=True)
        poster.start()
        poster.join(BEAT)

    def _watch(self) -> None:
        """The watchdog's thread."""
        if self._ranks.device.type == "cuda":
            torch.cuda.set_device(self._ranks.device)  # else a look at an event would open the host's first GPU
        before, due = time.monotonic(), 0.0
        while not self._stop.wait(TICK):
            now = time.monotonic()
            passed, before = min(now - before, LONGEST_TICK), now
            self._now += passed
            standing, waits = PHASES.tick(passed), PHASES.waits
            self._steps.count(standing, passed, waits)
            if self._now >= due:
                due = self._now + BEAT
                self._exchange.beat = self._beat(standing, waits)
                assert self._sidecar is not None
                self._sidecar.tell(f"{standing.mark}{ASKED if interrupt.asked() else ''}")
            verdict = self._judge()
            if verdict is not None and not self._stop.is_set():
                self._act(verdict)

    def _beat(self, standing: Standing, waits: bool) -> Heartbeat:
        self._beats += 1
        return Heartbeat(
            rank=self._ranks.rank,
            host=self._ranks.host,
            pid=os.getpid(),
            number=self._beats,
            step=standing.mark.step,
            marks=standing.mark.count,
            doing=str(standing.mark),
            seconds=round(standing.seconds, 1),
            usual=standing.usual,
            waiting=waits,
            broken=self._broken,
            own=self._steps.own,
            left=self._left,
        )

    def _judge(self) -> Alarm | None:
        """What is wrong by now; None: nothing."""
        if self._launcher is not None and (text := self._launcher.gone()) is not None:
            return self._without_launcher(text)
        exchange = self._exchange
        beats = exchange.heard
        if self._ranks.is_main:
            if (line := self._stragglers.hear(beats)) is not None:
                self._news.append(line)
            return self._detector.check(beats, self._now)
        if exchange.verdict is not None:
            return Alarm(**exchange.verdict)
        if exchange.answers != self._answers:
            self._answers, self._answered = exchange.answers, self._now
        quiet = self._now - self._answered
        name, doing = (beats[0].name, f"; it was in {beats[0].doing}") if beats else ("rank 0", "")
        if exchange.refused and quiet > UNREACHABLE_SECONDS:
            return Alarm(0, True, f"{name}, through which ranks keep in touch, is gone{doing}")
        if quiet > self._policy.silence_seconds:
            text = f"{name}, through which ranks keep in touch, has not answered for {quiet:.0f} s{doing}"
            return Alarm(0, True, text)
        return self._detector.lost(beats, self._now)

    def _without_launcher(self, text: str) -> Alarm | None:
        """Stop as on request, which saves; end where that takes too long."""
        who = self._ranks.name
        if self._alone_since is None:
            self._alone_since = self._now
            self._say(logging.ERROR, f"{text.format(who)}; stopping")
            interrupt.abandon()
        if self._now - self._alone_since > ALONE_SECONDS:
            return Alarm(self._ranks.rank, True, f"{text.format(who)}, and it does not stop")
        return None

    def _act(self, verdict: Alarm) -> None:
        if not verdict.ends:
            if self._ranks.is_main or verdict.rank == 0:
                self._say(logging.WARNING, verdict.text)
            return
        if self._ranks.is_main:
            threading.Thread(target=lambda: self._exchange.say(verdict), daemon=True).start()
        # One a host is enough; where that may be the one that is lost, its neighbour.
        if self._ranks.rank in (verdict.rank, 1 if verdict.rank == 0 else 0) or self._ranks.local == 0:
            self._say(logging.ERROR, f"{verdict.text}; ending the run")
        self._write_stacks()
        if self._ranks.is_main and self._ranks.size > 1:
            time.sleep(FAREWELL_SECONDS)
        assert self._sidecar is not None
        self._sidecar.leave()
        os._exit(LOST)

    def _say(self, level: int, text: str) -> None:
        """From a thread of its own: a screen that is held (Ctrl-S, a pager) holds whoever writes on it."""
        speaker = threading.Thread(target=lambda: log.log(level, "%s", text), daemon=True)
        speaker.start()
        speaker.join(BEAT)

    def _write_stacks(self) -> None:
        if self._folder is None:
            return
        file = self._folder / "logs" / f"stacks-rank{self._ranks.rank}.txt"
        with contextlib.suppress(OSError):
            file.parent.mkdir(parents=True, exist_ok=True)
            with open(file, "a", encoding="utf-8") as handle:
                print(f"{time.strftime('%F %T')} {PHASES.now}", file=handle, flush=True)
                faulthandler.dump_traceback(handle, all_threads=True)


class _Exchange:
    """This rank's talk with the store, on a thread that may be held up in it."""

    def __init__(self, kv_store: KeyValueStore, ranks: Ranks) -> None:
        self._kv_store, self._ranks = kv_store, ranks
        self.stop = threading.Event()
        self.beat: Heartbeat | None = None
        self.heard: list[Heartbeat] = []
        """The newest beats: of all ranks on rank 0, of rank 0 elsewhere."""
        self.verdict: dict[str, Any] | None = None
        """What rank 0 has found."""
        self.answers = 0
        """How often the store has answered."""
        self.refused = False
        """Whether rank 0's process does not listen any more."""
        self._keys = [f"beat/{rank}" for rank in (range(ranks.size) if ranks.is_main else (0,))]

    def run(self) -> None:
        """The thread."""
        while not self.stop.is_set():
            try:
                if self.beat is not None:
                    self.put(self.beat)
                *told, verdict = self._kv_store.get([*self._keys, "verdict"])
                self.heard = [Heartbeat(**each) for each in told if each is not None]
                self.verdict = verdict
                self.answers += 1
            except RuntimeError:
                self.refused = True
                return
            self.stop.wait(BEAT)

    def put(self, beat: Heartbeat) -> None:
        """Show a beat."""
        with contextlib.suppress(RuntimeError):
            self._kv_store.put(f"beat/{beat.rank}", asdict(beat))

    def say(self, verdict: Alarm) -> None:
        """Tell all ranks; by rank 0."""
        with contextlib.suppress(RuntimeError):
            self._kv_store.clone().put("verdict", asdict(verdict))


class _StepTimes:
    """Seconds a step that this rank takes without waiting for others, by sampling."""

    def __init__(self) -> None:
        self.own: tuple[int, float] | None = None
        """Number of the window, and its seconds a step."""
        self._number, self._first, self._passed, self._busy = 0, 0, 0.0, 0.0

    def count(self, standing: Standing, passed: float, waits: bool) -> None:
        """A tick."""
        step = standing.mark.step
        if standing.mark.slow or step == 0:  # drawing and the like is rank 0's alone
            return
        self._first = self._first or step
        self._passed += passed
        self._busy += 0.0 if waits else passed
        steps = step - self._first
        if self._passed >= WINDOW_SECONDS and steps >= WINDOW_STEPS:
            self._number += 1
            self.own = self._number, self._busy / steps
            self._first, self._passed, self._busy = step, 0.0, 0.0


@dataclass(frozen=True)
class _Launcher:
    """DeepSpeed's launcher on this host, and what has started that: ranks do not outlive either."""

    pid: int
    parent: int | None
    """The runner, or over several hosts the login that pdsh has made; None: unknown."""

    @classmethod
    def mine(cls) -> _Launcher | None:
        """None where this process was started by something else."""
        pid = os.getppid()
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        known = any(name.encode() in words for name in NODE_LAUNCHERS)
        return cls(pid, _parent(pid)) if known else None

    def gone(self) -> str | None:
        """What is, with a {} for the rank; None: nothing."""
        if os.getppid() != self.pid:
            return f"the launcher of {{}} (process {self.pid}) is gone"
        if self.parent is not None and _parent(self.pid) not in (self.parent, None):
            return f"what has started the launcher of {{}} (process {self.parent}) is gone"
        return None


def _parent(pid: int) -> int | None:
    """The parent of a process; None: it cannot be told."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[1])  # behind the name, which may have anything in it
    except (OSError, ValueError, IndexError):
        return None
