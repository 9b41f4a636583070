"""Every configuration of ds_configs/ on pretended devices: nothing that CUDA or NCCL would refuse,
no race, the waits of expected.py and no others, and no more memory of the device than is known.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.parity.small import CONFIGS
from tests.ranks import on_ranks
from tests.rehearsal import expected
from tests.rehearsal.engines import stages_of
from tests.rehearsal.expected import MANY, Waits
from tests.rehearsal.rounds import ACCUMULATIONS, FILLED, STEADY, Report
from tests.tiny import make_dataset

NAMES = sorted(file.stem for file in CONFIGS.glob("*.json"))
REPLICAS = 2
"""World sizes for ZeRO; each pipeline has its own."""
IMAGES, BATCH = 4, 2
"""Number of evaluation images, all square, so that every rank and batch does the same."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rehearsal")
    yaml = make_dataset(root, train=2, val=IMAGES // 2 * 3, nc=3)
    for number in range(2, IMAGES // 2 * 3, 3):  # every third is not square
        (root / "images" / "val" / f"{number:03}.jpg").unlink()
    return yaml


@pytest.mark.parametrize("name", NAMES)
def test_a_run_of_every_configuration_is_what_a_device_would_have_of_it(
    name: str, images: Path
) -> None:
    reports = _reports(name, images)
    assert [fault for report in reports for fault in report.faults] == []
    wrong = [
        line for rank, report in enumerate(reports) for line in _wrong_waits(name, rank, report)
    ]
    assert not wrong, "\n".join(wrong)
    _check_peaks(name, reports)


def test_statistics_over_the_replicas_wait_for_nothing_more(images: Path) -> None:
    name = "zero1_fp32"
    reports = _reports(name, images, sync_bn="true")
    assert [fault for report in reports for fault in report.faults] == []
    wrong = [
        line for rank, report in enumerate(reports) for line in _wrong_waits(name, rank, report)
    ]
    assert not wrong, "\n".join(wrong)


def _reports(name: str, images: Path, **hyper: str) -> list[Report]:
    size = stages_of(name) if stages_of(name) > 1 else REPLICAS
    function, device = (
        "tests.rehearsal.rounds:whole_round",
        "tests.rehearsal.pretended:pretended_device",
    )
    return on_ranks(
        function, (size,), within=device, timeout=150, name=name, data=str(images), **hyper
    )[size]


def _wrong_waits(name: str, rank: int, report: Report) -> list[str]:
    """One line per part of a run whose waits differ from the expected places or numbers."""
    rows = expected.rows_of(name, rank, stages_of(name))
    batches = IMAGES // BATCH // (1 if stages_of(name) > 1 else REPLICAS)
    wrong = []
    for part, seen in report.parts.items():
        if part == "build":
            continue
        if part.startswith("step of "):
            due = _sum(rows["step"], rows["micro-batch"], int(part.removeprefix("step of ")))
        elif part == "evaluation":
            due = _sum(rows["evaluation"], rows["evaluated batch"], batches)
        else:
            due = rows[part]
        counted = {
            place: count if due.get(place, 0) is not MANY else MANY
            for place, count in seen.waits.items()
        }
        if counted != due:
            told = "\n    ".join(seen.told)
            wrong.append(f"{name}, rank {rank}, {part}: {seen.waits}\n  and not {due}\n    {told}")
    return wrong


def _sum(once: Waits, each: Waits, times: int) -> Waits:
    """The waits `once` plus `times` x `each`."""
    due = dict(once)
    for place, count in each.items():
        due[place] = MANY if count is MANY else due.get(place, 0) + count * times
    return due


def _check_peaks(name: str, reports: list[Report]) -> None:
    """Peaks are as expected; more micro-batches, a load or a roll-back need no more memory."""
    most = max(FILLED if stages_of(name) > 1 else ACCUMULATIONS)
    peaks = [report.parts[f"step of {most}"].peak for report in reports]
    assert peaks == pytest.approx(expected.PEAKS[name], rel=0.02)
    if stages_of(name) > 1:
        few, many = (
            [report.parts[f"step of {count}"].peak for report in reports] for count in STEADY
        )
        assert (
            max(after - before for before, after in zip(few, many, strict=True)) <= expected.SLACK
        ), (few, many)
    for part in ("load", "roll-back"):
        more = [report.parts[part].held - report.parts["checkpoint"].held for report in reports]
        assert max(more) <= expected.SLACK, (part, more)
