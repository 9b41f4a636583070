"""Hostfiles: which hosts take part, and which of their slots. The format and the filters are DeepSpeed's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yolods.errors import Faults, UserError, nearest
from yolods.hosts.env_forwarding import in_memory

MOST_SLOTS = 4096
"""Of a host: more than any has, and few enough to count."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\S+)\s*(?:#.*)?$")


@dataclass(frozen=True)
class Host:
    """A host and those of its slots that take part."""

    name: str
    """As the hostfile has it."""
    slots: int
    """Devices the hostfile gives it."""
    chosen: tuple[int, ...]
    """Devices that take part, each a rank; all of them until something is filtered out."""

    @property
    def is_local(self) -> bool:
        """Whether it is this machine under one of the names that mean so everywhere."""
        return self.name in LOCAL_NAMES


def parse_hostfile(path: Path, named_by: str = "--hostfile ") -> tuple[Host, ...]:
    """Read lines of `name slots=N`; a # starts a comment.

    Args:
        named_by: what has named it, as it is written before the path.

    Raises:
        UserError: the file is missing or empty, or has bad lines: all of them, each with its number.
    """
    where = f"{named_by}{path}"
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    faults = Faults()
    hosts: dict[str, tuple[Host, int]] = {}
    for number, line in enumerate(lines, 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        host = _parse_line(line, f"{where} line {number}", faults)
        if host is None:
            continue
        if host.name in hosts:
            faults.add(
                f"{where} line {number}: {host.name} stands in line {hosts[host.name][1]} already; "
                "give a host one line with all its slots"
            )
        hosts.setdefault(host.name, (host, number))
    if not hosts and not faults:
        faults.add(f"{where}: no host in it; write lines like: worker-1 slots=8")
    faults.raise_if_any()
    return tuple(host for host, _ in hosts.values())


def plain_hostfile(path: Path) -> Path:
    """A hostfile as DeepSpeed reads it: the file itself or, where that has more than ASCII (a byte-order mark, say), a
    copy in memory of what counts in it, there until this process has ended.

    Raises:
        UserError: as `parse_hostfile`.
    """
    try:
        plain = path.read_bytes().isascii()
    except OSError:
        plain = False
    if plain:
        return path
    lines = "".join(f"{host.name} slots={host.slots}\n" for host in parse_hostfile(path))
    return in_memory("hostfile", lines)


def _parse_line(line: str, where: str, faults: Faults) -> Host | None:
    match = _LINE.match(line)
    if match is None:
        faults.add(f"{where}: `{line}`: write it as: name slots=N")
        return None
    text, slots = match["slots"], _whole(match["slots"])
    if not text.isascii() or not text.isdigit() or slots == 0:
        faults.add(f"{where}: slots={text}: it has to be a whole number of at least 1")
        return None
    if slots is None or slots > MOST_SLOTS:
        faults.add(f"{where}: slots={text[:20]}: it has to be at most {MOST_SLOTS}")
        return None
    return Host(match["name"], slots, tuple(range(slots)))


def _whole(text: str) -> int | None:
    """The number of up to nine digits; None: it is something else. Python makes no int of thousands of digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def select(hosts: Iterable[Host], include: str = "", exclude: str = "") -> tuple[Host, ...]:
    """Keep what `include` names, or leave out what `exclude` names.

    Args:
        hosts: the hostfile's.
        include: `host[:slot,slot...]`, several joined by @, as in "worker-1@worker-2:0,2".
        exclude: the same; at most one of both may be given.

    Returns:
        the hosts that are left, in the hostfile's order.

    Raises:
        UserError: an unknown host, a slot that it does not have, a filter that cannot be read, or nothing left.
    """
    hosts = tuple(hosts)
    if include and exclude:
        raise UserError("--include and --exclude cannot be given together; keep one")
    if not include and not exclude:
        return hosts
    flag, words = ("--include", include) if include else ("--exclude", exclude)
    named = _parse_filter(flag, words, {host.name: host for host in hosts})
    left = []
    for host in hosts:
        slots = named.get(host.name, ())
        chosen = [slot for slot in host.chosen if (slot in slots) == bool(include)]
        if chosen:
            left.append(Host(host.name, host.slots, tuple(chosen)))
    if not left:
        raise UserError(f"{flag} {words}: no slot is left to train on")
    return tuple(left)


def _parse_filter(flag: str, words: str, hosts: dict[str, Host]) -> dict[str, set[int]]:
    """Host -> the slots that the filter names; a host alone names all of its slots."""
    faults = Faults()
    named: dict[str, set[int]] = {}
    for part in words.split("@"):
        name, colon, listed = part.partition(":")
        if name not in hosts:
            faults.add(f"{flag} {words}: no host '{name}' in the hostfile{nearest(name, hosts)}")
            continue
        host = hosts[name]
        slots = named.setdefault(name, set())
        if not colon:
            slots |= set(host.chosen)
            continue
        for slot in listed.split(","):
            if (number := _whole(slot)) in host.chosen:
                slots.add(number)
            else:
                faults.add(f"{flag} {words}: {name} has no slot '{slot}'; its slots are {_numbers(host)}")
    faults.raise_if_any()
    return named


def _numbers(host: Host) -> str:
    return f"0 to {host.slots - 1}" if len(host.chosen) == host.slots else ", ".join(map(str, host.chosen))
