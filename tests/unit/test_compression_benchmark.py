"""benchmarks/compression.py: its configurations, its record and its verdict; nothing is trained."""

from __future__ import annotations

from typing import Any

from benchmarks.compression import VARIANTS, Job, Variant, parser, record, verdict

JOB = Job("yolov5s", 160, 2, 3, ("100mbit", ""), "eth0", "")


def found(plain: float, compressed: float) -> dict[str, Any]:
    steps = []
    for variant in VARIANTS:
        for rate in JOB.rates:
            for more in (0.0, 0.5, 0.1):
                seconds = (compressed if variant.rank else plain) + more
                averaging = 0.25 if variant.rank else 0.0
                step = {"seconds": seconds, "sent": 2e6, "averaging": averaging}
                steps.append({"name": variant.name, "rate": rate, **step})
    return {"steps": steps, "gradients": {variant.name: 3e6 for variant in VARIANTS}}


def test_a_variant_is_a_stage_and_the_rank_of_its_compression() -> None:
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    content = Variant(0, 4).content(2)
    assert content["yolods"] == {"compression": {"kind": "powersgd", "rank": 4}}
    assert "yolods" not in Variant(1).content(2)
    assert Variant(1, 2).name == "ZeRO-1, PowerSGD of rank 2"


def test_the_record_has_medians_of_each_case_and_link() -> None:
    text = "\n".join(record(JOB, [found(5.0, 1.0)] * 2, ["a machine"]))
    assert "| ZeRO-1 | 5.10 (5.00..5.50) | 3.00 | 2.00 | - |" in text
    assert "| ZeRO-0, PowerSGD of rank 2 | 1.10 (1.00..1.50) | 3.00 | 2.00 | 0.25 |" in text
    assert text.count("| case |") == 2 and "## unlimited" in text


def test_the_target_is_judged_on_the_first_link() -> None:
    assert verdict(found(5.0, 1.0), JOB.rates) == [
        "ZeRO-0, PowerSGD of rank 2 at 100mbit: 1.10 s where ZeRO-1 takes 5.10; target 1.5 s: met."
    ]
    assert verdict(found(5.0, 2.0), JOB.rates)[0].endswith("missed.")


def test_the_command_line_is_the_issues_case() -> None:
    options = parser().parse_args([])
    assert (options.model, options.rates) == ("yolov5s", ["100mbit", "1gbit", "unlimited"])
