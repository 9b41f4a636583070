"""The clipping benchmark: its counting of bytes, kernels and waits, its arithmetic, and a run of
all of it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import clipping, clipping_run
from benchmarks.clipping_count import (
    BLOCKS,
    CHUNK,
    DEVICE,
    TENSORS,
    counted,
    lone_rank,
    multi_tensor_launches,
)
from benchmarks.clipping_report import (
    FUSED,
    OURS,
    ROOFLINE,
    STOCK,
    ZERO3,
    ZERO12,
    Case,
    Name,
    Part,
    Row,
    Sample,
    Tally,
    doubts,
    misses,
    tables,
    verdicts,
)
from benchmarks.clipping_ways import Held, groups_of, ways

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "clipping.py"
GROUPS = (
    (("a.weight", torch.Size((30, 20, 3, 3))), ("b.weight", torch.Size((40, 30)))),
    (("b.bias", torch.Size((7,))),),
)
PARAMETERS = 30 * 20 * 9 + 40 * 30 + 7


def half(count: int = 1000) -> torch.Tensor:
    return torch.empty(count, dtype=torch.float16, device=DEVICE)


@pytest.mark.parametrize(
    ("function", "read", "written", "operators"),
    [
        (lambda x: x + x, 2000, 2000, 1),
        (lambda x: x.mul_(2), 2000, 2000, 1),
        (lambda x: x.sum(), 2000, 2, 1),
        (lambda x: x.double(), 2000, 8000, 1),
        (lambda x: x.zero_(), 0, 2000, 1),
        (lambda x: x.copy_(torch.empty(1000, device=DEVICE)), 4000, 2000, 1),
        (lambda x: x.view(10, 100)[3:].transpose(0, 1).detach(), 0, 0, 0),
        (lambda x: torch.empty_like(x), 0, 0, 0),
        (lambda x: x.isinf(), 2000 + 2000, 2000 + 1000, 2),
        (lambda x: x.isnan(), 2000, 1000, 1),
        (lambda x: torch._foreach_norm([x[:400], x[400:]], 2, dtype=torch.float32), 2000, 8, 1),
        (lambda x: torch._foreach_mul_([x[:400], x[400:]], 0.5), 2000, 2000, 1),
        (lambda x: torch.full((), 2.0, device=DEVICE), 0, 4, 1),
        (lambda x: torch.tensor([1.0, 2.0]) * 3, 0, 0, 0),
    ],
)
def test_bytes_and_operators_are_those_of_the_tensors(
    function: Callable, read: int, written: int, operators: int
):
    tensor = half()
    tally = counted(lambda: function(tensor))
    assert (tally.read, tally.written, tally.operators, tally.syncs) == (
        read,
        written,
        operators,
        0,
    )
    assert tally.moved == read + written and sum(tally.by_operator.values()) == operators


@pytest.mark.parametrize(
    ("function", "waits", "sent"),
    [
        (lambda x: x[0].item(), 1, 0),
        (lambda x: bool(x.any()), 1, 0),
        (lambda x: x.float().cpu().double().numpy(), 1, 0),
        (lambda x: x.to("cpu", non_blocking=True), 0, 0),
        (lambda x: torch.tensor(-1.0, device=DEVICE), 0, 1),
        (lambda x: bool(torch.tensor(float("inf")).isfinite()), 0, 0),
        (lambda x: x.to(DEVICE).amax(), 0, 0),
    ],
)
def test_waits_of_the_host_are_counted_and_what_stays_there_is_not(
    function: Callable, waits: int, sent: int
):
    tensor = half()
    tally = counted(lambda: function(tensor))
    assert (tally.waits, tally.sent, tally.syncs) == (waits, sent, waits + sent)


def test_a_host_without_a_device_is_told_numbers_that_it_can_go_on_with():
    told = []
    counted(lambda: told.append((half()[0].item(), half(3).float().cpu().sum().item())))
    assert told == [(0, 3.0)]


@pytest.mark.parametrize(
    ("counts", "launches"),
    [
        ([], 0),
        ([1], 1),
        ([1] * TENSORS, 1),
        ([1] * (TENSORS + 1), 2),
        ([CHUNK * BLOCKS], 1),
        ([CHUNK * BLOCKS + 1], 2),
        ([CHUNK * BLOCKS, 1], 2),
        ([CHUNK * (BLOCKS - 1), 1, 1], 2),
        ([CHUNK * BLOCKS * 3 - 5] * 2, 6),
    ],
)
def test_foreach_kernels_take_so_many_tensors_and_blocks_each(counts: list[int], launches: int):
    assert multi_tensor_launches(counts) == launches


@pytest.mark.parametrize(("dtype", "width"), [(torch.float16, 2), (torch.float32, 4)])
def test_what_each_way_moves_and_waits_for(dtype: torch.dtype, width: int):
    names = [str(way.name) for way in ways(Held(GROUPS, dtype, torch.device("cpu")))]
    tallies = dict(zip(names, clipping_run.count(GROUPS, dtype), strict=True))
    for stage in (ZERO12, ZERO3):
        measuring, applying = tallies[f"{OURS}, {stage}"]
        assert applying is not None
        assert width <= measuring.moved / PARAMETERS < width * 1.1
        assert (measuring.syncs, applying.syncs, measuring.collectives) == (1, 0, 1)
        assert applying.moved == 8 * PARAMETERS
        assert tallies[f"{FUSED}, {stage}"][0] == measuring
        fused = tallies[f"{FUSED}, {stage}"][1]
        assert fused is not None and (fused.moved, fused.syncs) == (len(GROUPS) * 8, 0)
    # DeepSpeed 0.19.8: for an overflow two reductions, or isinf and isnan of everything; then a
    # norm of a copy in fp64.
    check = {(ZERO12, 2): 4, (ZERO3, 2): 12}
    for stage in (ZERO12, ZERO3):
        measuring, applying = tallies[f"{STOCK}, {stage}"]
        assert applying is not None
        least = check.get((stage, width), 0) + width + 16 + 8
        assert least <= (measuring.moved + applying.moved) / PARAMETERS < least + 1
        assert (measuring.waits, measuring.sent) == (2 if width == 2 else 1, len(GROUPS))
        assert (applying.waits, applying.sent) == (len(GROUPS) if stage == ZERO12 else 0, 0)
    total, halves = tallies[ROOFLINE], tallies["clip_grad_norm_ (foreach)"]
    assert total[0].moved == width * PARAMETERS + width and total[1] is None
    assert width * PARAMETERS < halves[0].moved < width * PARAMETERS * 1.1 and halves[0].syncs == 0


class Seen(TorchDispatchMode):
    """Names of all operators that are no views."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if not func.is_view and func not in (
            torch.ops.aten.empty_like.default,
            torch.ops.aten.empty.memory_format,
        ):
            self.names[str(func)] += 1
        return func(*args, **(kwargs or {}))


def test_the_operators_that_are_counted_are_those_that_run():
    held = Held(GROUPS, torch.float16, torch.device("cpu"))
    compared = ways(held)
    held.hold_gradients()
    held.hold_masters()
    for way, (measuring, applying) in zip(
        compared, clipping_run.count(GROUPS, torch.float16), strict=True
    ):
        if way.name.what in (
            OURS,
            FUSED,
        ):  # on a CPU what these compute on the host cannot be told apart
            continue
        for function, tally in ((way.measure, measuring), (way.apply, applying)):
            with lone_rank(), Seen() as seen:
                function()
            inside = seen.names.pop("aten.isinf.default", 0)
            names = seen.names + Counter({"aten.abs.default": inside, "aten.eq.Scalar": inside})
            assert names == Counter(tally.by_operator if tally else {}), way.name


def test_the_larger_model_has_about_a_billion_parameters():
    groups = groups_of(clipping.SIZES[1])
    assert sum(shape.numel() for group in groups for _, shape in group) == pytest.approx(
        1e9, rel=0.01
    )


def row(
    what: str,
    stage: str,
    *,
    moved: int,
    syncs: int,
    seconds: float,
    busy: float = 1.0,
    norm: float = 3.0,
) -> Row:
    """Two rounds, the second one half as long; applying takes a tenth of measuring, of a fused
    optimizer nothing."""
    samples = (Sample(seconds, busy), Sample(seconds / 2, busy))
    tally = Tally(read=moved, waits=syncs, operators=1, launches=1)
    later = tuple(Sample(0.0 if what == FUSED else each.seconds / 10, busy) for each in samples)
    return Row(
        Name(what, stage),
        Part(tally, samples, 0),
        None if what == ROOFLINE else Part(Tally(), later),
        norm,
    )


def example(**changes: float) -> Case:
    rows = [row(ROOFLINE, "", moved=200, syncs=0, seconds=1.0)]
    for stage in (ZERO12, ZERO3):
        ours = {"moved": 210, "syncs": 1, "seconds": 1.2, **changes}
        rows += [row(what, stage, **ours) for what in (OURS, FUSED)]
        rows.append(row(STOCK, stage, moved=2200, syncs=8, seconds=6.0))
    return Case("m", "fp16", 100, 3, 2, tuple(rows))


def test_targets_are_met_or_missed_one_by_one():
    good = example()
    assert misses([good]) == [] and len(verdicts(good)) == 12 and "all met" in tables([good])[0]
    assert good.over_roof(good.row(OURS, ZERO3)).median == pytest.approx(1.2)
    assert good.faster(
        good.row(OURS, ZERO3), good.row(STOCK, ZERO3), both=True
    ).low == pytest.approx(5)
    assert {each.target[:9] for each in misses([example(moved=230)])} == {"measuring"}
    assert [each.found for each in misses([example(syncs=2)])] == ["2", "2"]
    slow = misses([example(seconds=1.55)])
    assert (
        len(slow) == 2 * 3
    )  # torch.sum and stock, twice; with a fused optimizer still 6.6 / 1.55 = 4.3
    assert "missed" in tables([example(syncs=2)])[0]


def test_the_tables_hold_every_way():
    text = tables([example()])
    assert sum(line.startswith("| yolods, ZeRO-3 |") for line in text) == 2
    assert any("2.10 | 1.05 | 1 | 1 | 1 | 0 |" in line for line in text)
    assert any("1.20 (1.20..1.20)" in line and "5.00 (5.00..5.00)" in line for line in text)


def test_a_busy_machine_and_different_norms_are_told():
    assert doubts([example()]) == []
    assert "50%" in doubts([example(busy=0.5)])[0]
    assert "norm" in doubts([example(norm=3.1)])[0]


def test_counts_alone_need_no_times():
    case = example()
    bare = replace(
        case, rows=tuple(replace(each, measuring=Part(each.measuring.tally)) for each in case.rows)
    )
    assert len(verdicts(bare)) == 4
    assert "Timed:" not in tables([bare])


@pytest.mark.parametrize(
    "words", [["--rounds", "-1"], ["--record", "no/such/folder/x.md"], ["--dtype", "fp8"]]
)
def test_what_cannot_be_measured_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        clipping.main(words)
    assert stopped.value.code == 2
    assert words[0].removeprefix("--") in capsys.readouterr().err


def test_an_unknown_model_is_refused_in_one_line(capsys: pytest.CaptureFixture[str]):
    assert clipping.main(["--sizes", "yolov9"]) == 2
    assert capsys.readouterr().err.startswith("error: --model yolov9")


def test_it_runs_and_records_on_tiny_gradients(
    monkeypatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(clipping_run, "groups_of", lambda model: GROUPS)
    words = [
        "--sizes",
        "tiny",
        "--rounds",
        "2",
        "--device",
        "cpu",
        "--record",
        str(tmp_path / "clipping.md"),
    ]
    assert clipping.main(words) in (0, 1)  # of so little the fixed costs are most
    record = (tmp_path / "clipping.md").read_text()
    assert (
        record.count("| stock, ZeRO-3 |") == 4
        and "## tiny, fp32" in record
        and "yolods 0." in record
    )
    assert "the ways disagree" not in record
    assert "applying, round 2 of 2" in capsys.readouterr().out


def test_help_works_as_a_script_from_any_folder(run_process, tmp_path: Path):
    done = run_process([sys.executable, SCRIPT, "--help"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--rounds" in done.stdout
