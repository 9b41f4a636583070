"""What a plan is asked for: machines, links and limits out of flags, and their faults."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import plans
from tests.tiny import make_dataset
from yolods.errors import UserError
from yolods.hosts.hostfile import Host
from yolods.plan.time.gpus import GPUS
from yolods.plan.traffic.links import Link
from yolods.planner.flags import plan_flags
from yolods.planner.request import (
    GIB,
    USED,
    Machines,
    choice_of,
    fast_precisions,
    machine_line,
    machines_of,
    network_of,
    subject_of,
)

TWO = (Host("a", 4, (0, 1, 2, 3)), Host("b", 4, (0, 1, 2, 3)))


def machines(*words: str, hosts: tuple[Host, ...] = ()) -> Machines:
    return machines_of(plan_flags().take(words), hosts, 0)


def test_ranks_and_hosts_of_flags_or_hostfile() -> None:
    of_flags = machines("--ranks", "8", "--hosts", "2", "--gpu", "a100")
    of_file = machines("--gpu", "a100", hosts=TWO)
    for each in (of_flags, of_file):
        assert (each.ranks, each.hosts, each.slots, each.device) == (8, 2, 4, "cuda")
    assert machine_line(of_file) == "8 ranks on 2 hosts, A100"


def test_a_part_of_a_gpus_memory_is_used() -> None:
    published = machines("--ranks", "1", "--gpu", "T4")
    assert published.limits.device == pytest.approx(USED * 16e9)
    assert published.memory_source == "published"
    given = machines("--ranks", "1", "--gpu", "T4", "--gpu-memory", "24")
    assert given.limits.device == pytest.approx(USED * 24 * GIB)
    assert given.memory_source == "given"


def test_without_a_gpu_ranks_share_this_machines_memory() -> None:
    one, two = (machines("--ranks", count) for count in ("1", "2"))
    assert one.device == "cpu" and one.limits.shared
    assert one.limits.device == pytest.approx(2 * two.limits.device)
    assert one.memory_source == "measured"
    given = machines("--ranks", "4", "--hosts", "2", "--host-memory", "3")
    assert given.limits.device == given.limits.host == pytest.approx(1.5 * GIB)
    assert given.memory_source == "given"


def test_links_are_given_measured_or_assumed() -> None:
    words = ("--ranks", "8", "--hosts", "2", "--gpu", "A100")
    assumed = machines(*words).network
    assert assumed.between.source == assumed.within.source == "assumed"
    given = machines(*words, "--link", "10", "100").network
    assert given.between.bandwidth == pytest.approx(10e9 / 8 * 1448 / 1514)
    assert given.within.bandwidth == pytest.approx(10 * given.between.bandwidth)
    link = Link(1e9, 1e-4, "measured")
    args, figures = plan_flags().take(words), GPUS["A100"]
    assert network_of(args, figures, 2, 4, link).between == link
    copied = network_of(args, figures, 2, 4, Link(1e9, 1e-4, "measured", 2e-9))
    assert copied.within.copying == 2e-9 and assumed.within.copying == 0
    alone = machines("--ranks", "8", "--gpu", "A100", "--link", "10").network
    assert alone.within.source == "given"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--hosts", "2"), "--hosts 2 needs --ranks"),
        (("--ranks", "7", "--hosts", "2"), "7 / 2 = 3.50; use 6 or 8"),
        (("--ranks", "0"), "--ranks 0: it must be above 0"),
        (("--ranks", "2", "--gpu-memory", "-1"), "--gpu-memory -1: it must be above 0"),
        (("--ranks", "2", "--gpu", "A10"), "--gpu A10: no figures of this GPU"),
        (("--ranks", "2", "--link", "1", "2", "3"), "--link has 3 values"),
        (("--ranks", "9999"), "a host has at most 4096"),
    ],
)
def test_wrong_machines_are_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as refused:
        machines(*words, hosts=TWO)
    assert line in str(refused.value)


def test_hosts_of_different_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="different numbers of slots: a 4, b 2"):
        machines("--gpu", "A100", hosts=(TWO[0], Host("b", 2, (0, 1))))


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--imgsz", "70"), "--imgsz 70: this model needs a multiple of 32; use 64 or 96"),
        (("--precision", "bf16"), "T4 has no units for bf16; it computes in fp32, fp16"),
        (("--optimizer", "SDG"), "--optimizer SDG: unknown (did you mean 'SGD'?)"),
        (("--images-per-step", "0"), "--images-per-step 0: it must be above 0"),
        (("--images-per-step", str(10**20)), f"{10**20}: at most 131072 are planned"),
        (("--stages", "3"), "--stages 3 do not divide 4 ranks: 4 / 3 = 1.33; use 1, 2, 4"),
        (("--stages", "2", "--zero", "2"), "a pipeline has ZeRO stage 0 or 1"),
    ],
)
def test_wrong_wishes_are_refused(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(UserError) as refused:
        choice_of(plan_flags().take(words), plans.subject(), plans.machines(4))
    assert line in str(refused.value)


def test_the_images_per_step_are_a_multiple_of_the_ranks() -> None:
    args = plan_flags().take(["--imgsz", "64"])
    assert choice_of(args, plans.subject(), plans.machines(4)).images == 64
    assert choice_of(args, plans.subject(), plans.machines(48)).images == 96


def test_a_data_type_given_twice_is_searched_once() -> None:
    args = plan_flags().take(["--imgsz", "64", "--precision", "fp16", "fp32", "fp16"])
    assert choice_of(args, plans.subject(), plans.machines(4)).precisions == ("fp16", "fp32")


def test_one_pixel_needs_two_images() -> None:
    args = plan_flags().take(["--imgsz", "32"])
    assert choice_of(args, plans.subject(), plans.machines(4)).single_value
    args = plan_flags().take(["--imgsz", "64"])
    assert not choice_of(args, plans.subject(), plans.machines(4)).single_value


def test_fp16_is_for_gpus_without_bf16() -> None:
    assert fast_precisions(GPUS["T4"]) == ("fp32", "fp16")
    assert fast_precisions(GPUS["H100"]) == ("fp32", "bf16")


def test_boxes_come_from_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six images with 1, 2, 3, 1, 2, 3 boxes: a mosaic of four has 8 on average."""
    monkeypatch.setenv("YOLODS_CACHE", str(tmp_path / "cache"))
    data = make_dataset(tmp_path / "data", train=6)
    found = subject_of("yolov5[0.33,0.1]", str(data))
    assert found.boxes.mean == pytest.approx(8.0)
    assert found.boxes_source == "of tiny.yaml: 12 on 6 images"
    assert len(found.blueprint.names) == 2
    assert len(subject_of("yolov5[0.33,0.1]", str(data), single_cls=True).blueprint.names) == 1


def test_without_data_cocos_boxes_are_assumed() -> None:
    found = subject_of("yolov5[0.33,0.1]", None)
    assert len(found.blueprint.names) == 80 and found.boxes_source.startswith("assumed")


def test_data_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        subject_of("yolov5n", str(tmp_path / "x.yaml"))
    with pytest.raises(UserError, match="this is a folder"):
        subject_of("yolov5n", str(tmp_path))
