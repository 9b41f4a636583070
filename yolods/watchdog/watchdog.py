"""Keeps a run from hanging: sends heartbeats, reads the others', and ends a process of a lost run.

    main thread      marks its phases (`phases`)
    watchdog         ten times per second: counts time, own or waiting (`collective_waits`),
                     judges the heartbeats (`failure_detector`), ends the run
    exchange         once per second: writes this rank's heartbeat to the store and reads others';
                     it may block forever
    sidecar          a process: ends this rank if the rank's own threads no longer can

Rank 0 reads the heartbeats of all ranks and publishes its verdict in the store; the other ranks
read the verdict and rank 0's heartbeats. If the store does not answer, rank 0 or its host is lost.

A process that the watchdog ends exits with LOST and writes the stacks of its threads to
logs/stacks-rank<r>.txt in the run's folder.
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
"""Modules that start the ranks of a host: DeepSpeed's and ours."""
TICK, BEAT = 0.1, 1.0
"""Seconds between two judgements, and between two heartbeats."""
LONGEST_TICK = 1.0
"""Limit of the time counted per tick: a process that was suspended for longer has not been slow."""
UNREACHABLE_SECONDS = 2.0
"""Seconds after a refused connection to the store, within which a run that ends properly has
ended."""
FAREWELL_SECONDS = 2.5
"""Seconds before rank 0 takes the store down with itself, so that the others can read the
reason."""
ALONE_SECONDS = 60.0
"""Seconds in which ranks that lost their launcher must finish a step and save."""
WINDOW_SECONDS, WINDOW_STEPS = 10.0, 5
"""Minimum length of a window over which step times are averaged before ranks are compared."""


# Wide: the state of one rank, shared by the watchdog's thread and the main thread.
class Watchdog:
    """One rank's watchdog, active inside `with Watchdog(...)`."""

    def __init__(
        self, kv_store: KeyValueStore, ranks: Ranks, policy: WatchdogConfig, folder: Path | None
    ) -> None:
        """
        Args:
            folder: the run's folder, for stacks; None: write none.
        """
        self._kv_store, self._ranks, self._policy, self._folder = kv_store, ranks, policy, folder
        self._detector, self._stragglers = FailureDetector(policy), Stragglers()
        # A connection of its own: one connection serves one thread, and a call may block forever.
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
            # Later than the other ranks' limit, because they can say more about the loss.
            self._sidecar = Sidecar(self._ranks.name, self._policy.silence_seconds + 2 * BEAT)
            self._exchange.beat = self._beat(Standing(PHASES.now, 0.0, None), False)
            if self._ranks.is_main:
                # So that a read finds every key and needs only one request for all of them.
                self._kv_store.put("verdict", None)
            for work in (self._exchange.run, self._watch):
                threading.Thread(
                    target=work, name=f"yolods {work.__qualname__}", daemon=True
                ).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if not self._policy.enabled:
            return
        # On success, wait for all ranks: rank 0 takes the store down, and a rank that still works
        # would take its absence for a failure. On a lost connection, wait for the verdict, because
        # the exception (say, "connection reset by peer") does not name the lost rank.
        if error is None:
            PHASES.mark("the end")
            self._ranks.barrier()
        elif self._ranks.size > 1 and is_connection(error) and not interrupt.pressed():
            self._wait_for_verdict(error)
        if not isinstance(error, KeyboardInterrupt):
            self._left = "" if error is None else f"{type(error).__name__}: {error}".splitlines()[0]
            # The command line prints a UserError.
            shown = isinstance(error, UserError) or interrupt.pressed()
            if self._left and not shown:
                log.error("%s failed in %s: %s", self._ranks.name, PHASES.now, self._left)
            self._post()
        # Stop both threads before the sidecar, so that no verdict ends a process that is leaving.
        self._stop.set()
        self._exchange.stop.set()
        assert self._sidecar is not None
        self._sidecar.leave()

    def news(self) -> list[str]:
        """New lines about stragglers, each returned once. On rank 0."""
        told, self._news = self._news, []
        return told

    def step_seconds(self) -> dict[int, float]:
        """Seconds per step of each rank in its last window, without waiting. On rank 0."""
        return self._stragglers.seconds()

    def _wait_for_verdict(self, error: BaseException) -> None:
        """Wait until the watchdog's thread names the lost rank and ends this process.

        Sets `broken`, which shortens the silence after which the other ranks name it.
        """
        self._broken = True
        log.info(
            "lost a connection: %s",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
        )
        time.sleep(self._policy.silence_seconds + FAREWELL_SECONDS + 2 * BEAT)

    def _post(self) -> None:
        """Put a last heartbeat on the store, on a thread of its own, because that may block
        forever."""
        last = self._beat(Standing(PHASES.now, 0.0, None), False)
        poster = threading.Thread(target=lambda: self._exchange.put(last), daemon=True)
        poster.start()
        poster.join(BEAT)

    def _watch(self) -> None:
        """Loop of the watchdog's thread: a judgement every TICK, a heartbeat every BEAT seconds."""
        if self._ranks.device.type == "cuda":
            # The device is a thread's own. Without it, asking CUDA whether an event has completed
            # would create a context on the host's first GPU.
            torch.cuda.set_device(self._ranks.device)
        before, due = time.monotonic(), 0.0
        while not self._stop.wait(TICK):
            now = time.monotonic()
            passed, before = min(now - before, LONGEST_TICK), now
            # A clock of its own, which stops while the process is suspended.
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
        """The present alarm; None: nothing is wrong.

        The launcher comes first: ranks without one must not wait for any verdict.
        """
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
        # Rank 0 has published nothing, so find out whether it still can.
        if exchange.answers != self._answers:
            self._answers, self._answered = exchange.answers, self._now
        quiet = self._now - self._answered
        name, doing = (beats[0].name, f"; it was in {beats[0].doing}") if beats else ("rank 0", "")
        if exchange.refused and quiet > UNREACHABLE_SECONDS:
            return Alarm(0, True, f"{name}, which relays the heartbeats, is gone{doing}")
        if quiet > self._policy.silence_seconds:
            text = f"{name}, which relays the heartbeats, has not answered for {quiet:.0f} s{doing}"
            return Alarm(0, True, text)
        return self._detector.lost(beats, self._now)

    def _without_launcher(self, text: str) -> Alarm | None:
        """Stop as on request, with a checkpoint; the alarm if that takes too long."""
        who = self._ranks.name
        if self._alone_since is None:
            self._alone_since = self._now
            self._say(logging.ERROR, f"{text.format(who)}; stopping")
            interrupt.abandon()
        if self._now - self._alone_since > ALONE_SECONDS:
            return Alarm(self._ranks.rank, True, f"{text.format(who)}, and the rank does not stop")
        return None

    def _act(self, verdict: Alarm) -> None:
        if not verdict.ends:
            if self._ranks.is_main or verdict.rank == 0:
                self._say(logging.WARNING, verdict.text)
            return
        # Publish first, on a thread that may block: the others act on it while this rank writes.
        if self._ranks.is_main:
            threading.Thread(target=lambda: self._exchange.say(verdict), daemon=True).start()
        # One rank per host prints the line. If that one may be the lost rank, its neighbour does.
        if (
            self._ranks.rank in (verdict.rank, 1 if verdict.rank == 0 else 0)
            or self._ranks.local == 0
        ):
            self._say(logging.ERROR, f"{verdict.text}; ending the run")
        self._write_stacks()
        if self._ranks.is_main and self._ranks.size > 1:
            # The store runs in this process: stay until the others have read the verdict.
            time.sleep(FAREWELL_SECONDS)
        assert self._sidecar is not None
        self._sidecar.leave()
        # `_exit`, because the main thread may be stuck in a collective and would never unwind.
        os._exit(LOST)

    def _say(self, level: int, text: str) -> None:
        """Log on a thread of its own: a blocked terminal (Ctrl-S, a pager) blocks whoever
        writes."""
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
    """This rank's communication with the store, on a thread that may block in it."""

    def __init__(self, kv_store: KeyValueStore, ranks: Ranks) -> None:
        self._kv_store, self._ranks = kv_store, ranks
        self.stop = threading.Event()
        self.beat: Heartbeat | None = None
        self.heard: list[Heartbeat] = []
        """Newest heartbeats: of all ranks on rank 0, of rank 0 on the others."""
        self.verdict: dict[str, Any] | None = None
        """Rank 0's verdict."""
        self.answers = 0
        """Number of answers from the store."""
        self.refused = False
        """Whether rank 0's process no longer listens."""
        self._keys = [f"beat/{rank}" for rank in (range(ranks.size) if ranks.is_main else (0,))]

    def run(self) -> None:
        """Loop of the thread."""
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
        """Write a heartbeat."""
        with contextlib.suppress(RuntimeError):
            self._kv_store.put(f"beat/{beat.rank}", asdict(beat))

    def say(self, verdict: Alarm) -> None:
        """Publish a verdict to all ranks. On rank 0."""
        with contextlib.suppress(RuntimeError):
            # A new connection: this one's thread may be blocked in a read.
            self._kv_store.clone().put("verdict", asdict(verdict))


class _StepTimes:
    """Samples the seconds per step that this rank takes without waiting for others."""

    def __init__(self) -> None:
        self.own: tuple[int, float] | None = None
        """Number of the window, and its seconds per step."""
        self._number, self._first, self._passed, self._busy = 0, 0, 0.0, 0.0

    def count(self, standing: Standing, passed: float, waits: bool) -> None:
        """Count one tick."""
        step = standing.mark.step
        # Only rank 0 draws and writes; that makes it no straggler.
        if standing.mark.slow or step == 0:
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
    """DeepSpeed's launcher on this host, and its parent: ranks do not outlive either."""

    pid: int
    parent: int | None
    """The runner, or with several hosts the login shell that pdsh started; None: unknown."""

    @classmethod
    def mine(cls) -> _Launcher | None:
        """This process's launcher; None if something else started this process."""
        pid = os.getppid()
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return None
        known = any(name.encode() in words for name in NODE_LAUNCHERS)
        return cls(pid, _parent(pid)) if known else None

    def gone(self) -> str | None:
        """Text about the process that is gone, with {} for the rank; None: both are alive."""
        # Linux gives an orphan another parent, so a changed parent means that the process died.
        if os.getppid() != self.pid:
            return f"the launcher of {{}} (process {self.pid}) is gone"
        if self.parent is not None and _parent(self.pid) not in (self.parent, None):
            return f"the process that started the launcher of {{}} (process {self.parent}) is gone"
        return None


def _parent(pid: int) -> int | None:
    """The parent of a process; None: unknown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(text.rpartition(")")[2].split()[1])  # after the name, which may contain anything
    except (OSError, ValueError, IndexError):
        return None
