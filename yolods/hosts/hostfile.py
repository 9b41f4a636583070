"""Hostfiles: which hosts and slots take part. The format and the filters are DeepSpeed's."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from yolods.errors import Faults, UserError, nearest
from yolods.hosts.env_forwarding import in_memory

MOST_SLOTS = 4096
"""Limit of slots per host: more than any host has, and few enough to enumerate."""
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")

_LINE = re.compile(r"^(?P<name>\S+)\s+slots=(?P<slots>\S+)\s*(?:#.*)?$")


@dataclass(frozen=True)
class Host:
    """A host, with the slots that take part."""

    name: str
    """Name in the hostfile."""
    slots: int
    """Number of devices in the hostfile."""
    chosen: tuple[int, ...]
    """Devices that take part, one rank each; all of them before filtering."""

    @property
    def is_local(self) -> bool:
        """Whether the name means the local machine on every machine."""
        return self.name in LOCAL_NAMES


def parse_hostfile(path: Path, named_by: str = "--hostfile ") -> tuple[Host, ...]:
    """Read lines of `name slots=N`; a # starts a comment.

    Args:
        named_by: prefix of the path in messages: the flag or variable that named the file.

    Raises:
        UserError: the file is missing or empty, or has bad lines; names each bad line.
    """
    where = f"{named_by}{path}"
    faults = Faults()
    hosts: dict[str, tuple[Host, int]] = {}
    for number, line in enumerate(_read_lines(path, where), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        host = _parse_line(line, f"{where} line {number}", faults)
        if host is None:
            continue
        if host.name in hosts:
            faults.add(
                f"{where} line {number}: {host.name} is already on line {hosts[host.name][1]}; "
                "give a host one line with all its slots"
            )
        hosts.setdefault(host.name, (host, number))
    if not hosts and not faults:
        faults.add(f"{where}: it has no host; write lines like: worker-1 slots=8")
    faults.raise_if_any()
    return tuple(host for host, _ in hosts.values())


def _read_lines(path: Path, where: str) -> list[str]:
    try:
        # utf-8-sig, because some editors write a byte-order mark.
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise UserError(f"{where}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{where}: cannot read it: {getattr(error, 'strerror', None) or error}"
        ) from None


def plain_hostfile(path: Path) -> Path:
    """A hostfile that DeepSpeed can read.

    The file itself if it is ASCII; otherwise (with a byte-order mark, for example) a copy of its
    hosts in memory, which exists until this process ends.

    Raises:
        UserError: as `parse_hostfile`.
    """
    try:
        plain = path.read_bytes().isascii()
    except OSError:
        plain = False  # `parse_hostfile` reports the error
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
        faults.add(f"{where}: slots={text}: it must be a whole number of at least 1")
        return None
    if slots is None or slots > MOST_SLOTS:
        faults.add(f"{where}: slots={text[:20]}: it must be at most {MOST_SLOTS}")
        return None
    return Host(match["name"], slots, tuple(range(slots)))


def _whole(text: str) -> int | None:
    """The value of up to nine digits; None: anything else. Python refuses to convert very long
    texts."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None


def select(hosts: Iterable[Host], include: str = "", exclude: str = "") -> tuple[Host, ...]:
    """Keep what `include` names, or remove what `exclude` names.

    Args:
        hosts: the hosts of the hostfile.
        include: `host[:slot,slot...]`, several joined by @, as in "worker-1@worker-2:0,2".
        exclude: the same; at most one of the two may be given.

    Returns:
        the remaining hosts, in the hostfile's order.

    Raises:
        UserError: an unknown host, a slot that it does not have, an invalid filter, or nothing
            remains.
    """
    hosts = tuple(hosts)
    if include and exclude:
        raise UserError("--include and --exclude cannot be combined; keep one")
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
        raise UserError(f"{flag} {words}: no slot remains to train on")
    return tuple(left)


def _parse_filter(flag: str, words: str, hosts: dict[str, Host]) -> dict[str, set[int]]:
    """Host -> the slots that the filter names; a host without slots means all of its slots."""
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
                faults.add(
                    f"{flag} {words}: {name} has no slot '{slot}'; its slots are {_numbers(host)}"
                )
    faults.raise_if_any()
    return named


def _numbers(host: Host) -> str:
    return (
        f"0 to {host.slots - 1}"
        if len(host.chosen) == host.slots
        else ", ".join(map(str, host.chosen))
    )
