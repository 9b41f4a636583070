"""The flags of `yolods plan`: wrong ones are refused, all at once."""

from __future__ import annotations

import pytest

from yolods.errors import UserError
from yolods.planner.flags import plan_flags


def test_defaults_leave_everything_to_the_plan() -> None:
    args = plan_flags().take([])
    assert (args.imgsz, args.top, args.optimizer) == (640, 6, "auto")
    assert args.ranks is args.gpu is args.precision is args.stages is args.zero is None


def test_several_values_and_spellings() -> None:
    args = plan_flags().take(
        ["--precision", "fp32", "bf16", "--gpu_memory", "24", "--link", "100", "900"]
    )
    assert args.precision == ["fp32", "bf16"]
    assert args.gpu_memory == 24 and args.link == [100, 900]


def test_all_wrong_flags_are_named_at_once() -> None:
    words = ["--rank", "8", "--imgsz", "x", "--precision", "fp8", "--zero", "4"]
    with pytest.raises(UserError) as refused:
        plan_flags().take(words)
    lines = str(refused.value).splitlines()
    assert any("unknown flag --rank (did you mean '--ranks'?)" in line for line in lines)
    assert any(line.startswith("--imgsz is 'x': it must be a whole number") for line in lines)
    assert any(line.startswith("--precision: invalid choice: 'fp8'") for line in lines)
    assert any(line.startswith("--zero: invalid choice: 4") for line in lines)
