"""The page of a GPU session's results: text out of what the parts have noted, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PRETENDED = (
    "**Not measured on a GPU.** This was a rehearsal on a CPU with tiny sizes: it shows that the "
    "script runs through, and no number in it says anything about a card."
)


def page(results: Mapping[str, Any]) -> str:
    """All results as Markdown: what is wrong comes first, then a table of the parts, then each
    part."""
    lines = [
        f"# {results.get('title', 'GPU session')}, {results.get('began', '')}".rstrip(", "),
        "",
    ]
    if results["pretended"]:
        lines += [PRETENDED, ""]
    lines += [f"    {results['command']}", ""] if "command" in results else []
    lines += [f"- {line}" for line in results.get("machine", ())]
    lines += ["", "## What is not as it should be", "", *_faults(results), ""]
    lines += [
        "| part | looks at | at most, s | took, s | of CPUs, s | |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for part in results["parts"]:
        took, cpu = (
            f"{part[key]:.1f}" if key in part else "" for key in ("seconds", "cpu_seconds")
        )
        lines.append(
            f"| {part['name']} | {part['title']} | {part['limit']:.0f} | {took} | {cpu} | "
            f"{part['status']} |"
        )
    for part in results["parts"]:
        lines += ["", *_part(part)]
    return "\n".join(lines).rstrip() + "\n"


def faults(results: Mapping[str, Any]) -> list[str]:
    """A line for every doubt, every failed item and every part that did not end by itself."""
    found = []
    for part in results["parts"]:
        for item in part.get("items", ()):
            found += [f"{part['name']}, {item['name']}: {doubt}" for doubt in item["doubts"]]
            if "failed" in item:
                found.append(f"{part['name']}, {item['name']}: failed: {item['failed']}")
        if part["status"] not in ("done", "skipped", "with faults"):
            found.append(f"{part['name']}: {part['status']}")
    return found


def _faults(results: Mapping[str, Any]) -> list[str]:
    return [f"- {_inline(line)}" for line in faults(results)] or ["Nothing was found."]


def _part(part: Mapping[str, Any]) -> Iterator[str]:
    if not part.get("items") and "screen" not in part:
        return
    yield f"## {part['name']}: {part['title']}"
    yield ""
    for item in part.get("items", ()):
        if "skipped" in item:
            yield f"- {item['name']}: skipped, {item['skipped']}"
            continue
        yield f"- **{item['name']}** ({item['seconds']:.1f} s)"
        if "failed" in item:
            yield f"  - failed: {_inline(item['failed'])}"
        yield from (f"  - {name}: {_inline(_told(value))}" for name, value in item["facts"].items())
    if "screen" in part:
        yield from ("", "Its screen ended with:", "", *(f"    {line}" for line in part["screen"]))


def _told(value: Any) -> str:
    """A fact in words: numbers with five digits, mappings and lists in one line."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, float):
        return f"{value:.5g}"
    if isinstance(value, Mapping):
        return "; ".join(f"{name} {_told(each)}" for name, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_told, value)) or "none"
    return str(value)


def _inline(text: str) -> str:
    return " ".join(text.split())
