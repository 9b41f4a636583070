"""What has to come before what: streams, events and the host as vector clocks.

A stream's clock counts what was launched on it. What a stream knows of another is how far that one
was when the two met last: by `wait_stream`, an event, or over the host, which waits for streams and
launches everything.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from typing import Any

HOST = "host"


class Clocks:
    """How far every stream and the host are, and what each knows of the others."""

    def __init__(self) -> None:
        self._ticks: dict[Hashable, int] = defaultdict(int)
        self._known: dict[Hashable, dict[Hashable, int]] = defaultdict(dict)

    def launch(self, stream: Hashable) -> int:
        """Something starts on a stream, or on the host: after all that the host knows to be over.
        Its number."""
        if stream != HOST:
            self.meet(stream, HOST)
        self._ticks[stream] += 1
        return self._ticks[stream]

    def now(self, stream: Hashable) -> dict[Hashable, int]:
        """All that comes before what is launched on a stream next."""
        return {**self._known[stream], stream: self._ticks[stream]}

    def meet(self, stream: Hashable, other: Hashable) -> None:
        """What is launched on `stream` from now on comes after all that was launched on `other`."""
        self.learn(stream, self.now(other))

    def learn(self, stream: Hashable, moment: dict[Hashable, int]) -> None:
        """What is launched on `stream` from now on comes after such a moment."""
        known = self._known[stream]
        for other, tick in moment.items():
            if tick > known.get(other, -1):
                known[other] = tick

    def knows(self, stream: Hashable, other: Hashable, tick: int) -> bool:
        """Whether what is launched on `stream` now comes after number `tick` of `other`."""
        return stream == other or self._known[stream].get(other, 0) >= tick

    def finish(self) -> None:
        """The host waits for all streams."""
        for stream in list(self._ticks):
            self.meet(HOST, stream)


class Streams:
    """The streams of the pretended device, as torch.cuda's functions and classes know them."""

    def __init__(self, clocks: Clocks, wait: Callable[[str], None]) -> None:
        """
        Args:
            wait: notes a wait of the host.
        """
        self.clocks, self._wait = clocks, wait
        self._made = 0
        self.default = self.make()
        self._stack = [self.default]

    @property
    def current(self) -> Stream:
        """Where kernels are launched."""
        return self._stack[-1]

    def make(self, *_: Any, **__: Any) -> Stream:
        """`torch.cuda.Stream(..)`."""
        self._made += 1
        return Stream(self, self._made - 1)

    def event(self, *_: Any, **__: Any) -> Event:
        """`torch.cuda.Event(..)`."""
        return Event(self)

    def use(self, stream: Stream | None) -> _Within:
        """`torch.cuda.stream(..)`."""
        return _Within(self._stack, stream or self.current)

    def choose(self, stream: Stream) -> None:
        """`torch.cuda.set_stream(..)`."""
        self._stack[-1] = stream

    def host_waits(self, what: str, stream: Hashable = None) -> None:
        """The host waits until a stream, or the current one, has done all that was launched on
        it."""
        self._wait(what)
        self.clocks.meet(HOST, self.current.cuda_stream if stream is None else stream)

    def host_waits_until(self, what: str, moment: dict[Hashable, int]) -> None:
        """The host waits for a moment."""
        self._wait(what)
        self.clocks.learn(HOST, moment)

    def synchronize(self, *_: Any) -> None:
        """`torch.cuda.synchronize()`."""
        self._wait("synchronize of the device")
        self.clocks.finish()


class _Within:
    def __init__(self, stack: list[Stream], stream: Stream) -> None:
        self._stack, self.stream = stack, stream

    def __enter__(self) -> None:
        self._stack.append(self.stream)

    def __exit__(self, *_: object) -> None:
        self._stack.pop()


class Stream:
    """As torch.cuda.Stream."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams, self.cuda_stream = streams, number

    @property
    def stream_id(self) -> int:
        """Its number; 0: the default one."""
        return self.cuda_stream

    def synchronize(self) -> None:
        """The host waits for all that was launched here."""
        self._streams.host_waits("synchronize of a stream", self.cuda_stream)

    def wait_stream(self, other: Stream) -> None:
        """What is launched here from now on waits for all that was launched there."""
        self._streams.clocks.meet(self.cuda_stream, other.cuda_stream)

    def wait_event(self, event: Event) -> None:
        """What is launched here from now on waits for the event."""
        self._streams.clocks.learn(self.cuda_stream, event.moment)

    def record_event(self, event: Event | None = None) -> Event:
        """An event that comes when all that was launched here is done."""
        event = event or self._streams.event()
        event.record(self)
        return event

    def query(self) -> bool:
        """Whether all is done: the device is never slower than the host."""
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and other.cuda_stream == self.cuda_stream

    def __hash__(self) -> int:
        return hash(self.cuda_stream)


class Event:
    """As torch.cuda.Event. It knows no times."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self.moment: dict[Hashable, int] = {}

    def record(self, stream: Stream | None = None) -> None:
        """It comes when all that was launched on the stream is done."""
        self.moment = self._streams.clocks.now((stream or self._streams.current).cuda_stream)

    def wait(self, stream: Stream | None = None) -> None:
        """What is launched on the stream from now on waits for it."""
        (stream or self._streams.current).wait_event(self)

    def synchronize(self) -> None:
        """The host waits for it."""
        self._streams.host_waits_until("synchronize of an event", self.moment)

    def query(self) -> bool:
        """Whether it has come: the device is never slower than the host, which then knows it."""
        self._streams.clocks.learn(HOST, self.moment)
        return True

    def elapsed_time(self, other: Event) -> float:
        """Milliseconds: a number, and no measurement."""
        return 1.0
