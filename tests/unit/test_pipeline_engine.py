"""Two stages in two threads over queues: their gradients are the whole model's. Real ranks:
tests/parity."""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.loose_engine import CPU, LooseDeepSpeed, parts_of
from yolods.distributed.stage_channels import StageChannels
from yolods.distributed.world import Ranks, Share
from yolods.engine.microbatches import ReplayableBatches
from yolods.engine.pipeline import engine as module
from yolods.engine.pipeline.engine import PipelineEngine, StageBoundaries
from yolods.model.graph.graph import IMAGE, OUT
from yolods.optim.lr_schedule import Step
from yolods.plan.zero_bubble import passes


class Queue:
    """A channel within a process; `left` is what was sent and has not been waited for."""

    def __init__(self) -> None:
        self._queue: queue.Queue = queue.Queue()
        self.bytes = self.left = self.most = 0

    def send(self, tensors: list[Tensor], key: Any = None) -> None:
        self._queue.put([tensor.detach().clone() for tensor in tensors])
        self.bytes += sum(tensor.nbytes for tensor in tensors)
        self.left += 1
        self.most = max(self.most, self.left)

    def receive(self, key: Any = None) -> SimpleNamespace:
        return SimpleNamespace(wait=lambda: self._queue.get(timeout=20))

    def expect(self, forms: list[Tensor], key: Any) -> None:
        """Queues need not know shapes."""

    def drain(self, leave: int = 0) -> None:
        self.left = min(self.left, leave)


class Front(nn.Module):
    """Two values cross the cut: one of trained weights and one of frozen ones."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.trained, self.frozen = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 1)
        self.frozen.requires_grad_(False)

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"h": self.trained(values[IMAGE]).relu(), "f": self.frozen(values[IMAGE])}


class Back(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.conv = nn.Conv2d(6, 1, 1)

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {OUT: self.conv(torch.cat((values["h"], values["f"]), 1))}


def loss(prediction: Tensor, labels: dict[str, Tensor], images: int) -> tuple[Tensor, Tensor]:
    wanted = labels["bboxes"].sum() + 2 * labels["cls"].sum() + 3 * labels["batch_idx"].sum()
    value = (prediction - wanted).square().mean()
    return value * images, value.detach() * torch.tensor([1.0, 2.0, 3.0])


def batch(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "img": torch.randint(0, 256, (2, 3, 4, 4), generator=generator, dtype=torch.uint8),
        "batch_idx": torch.arange(number).float(),
        "cls": torch.rand(number, 1, generator=generator),
        "bboxes": torch.rand(number, 4, generator=generator),
    }


def stages(
    monkeypatch: pytest.MonkeyPatch,
    nets: tuple[nn.Module, nn.Module],
    cut: tuple[str, ...] = ("h", "f"),
    schedule: str = "1f1b",
    **parts: Any,
) -> list[PipelineEngine]:
    """The engines of both stages, on channels between them."""
    forward, backward, labels = Queue(), Queue(), Queue()
    channels = [
        StageChannels(None, None, forward, backward, labels),
        StageChannels(forward, backward, None, None, labels),
    ]
    monkeypatch.setattr(module, "connect", lambda mesh, device: channels[mesh.stage])
    made = []
    for stage, net in enumerate(nets):
        mesh = SimpleNamespace(stages=2, stage=stage, replica=0, first=stage == 0, last=stage == 1)
        bounds = StageBoundaries(before=cut if stage else (), after=() if stage else cut)
        share = Share(0, 3, first_stage=stage == 0, last_stage=stage == 1)
        given = parts_of(LooseDeepSpeed(net), loss=loss if stage else None, share=share)
        made.append(PipelineEngine(replace(given, **parts), mesh, bounds, schedule=schedule))
    return made


def accumulate(engines: list[PipelineEngine], numbers: range) -> list[Tensor]:
    """What each stage's passes sum up to."""
    step = Step(0, len(numbers), 0, (0.1, 0.1, 0.1), 0.9)

    def run(engine: PipelineEngine) -> Tensor:
        given = (batch(number) for number in numbers) if engine.mesh.first else iter(())
        return engine._accumulate(step, ReplayableBatches(given, keep=False), None)

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, engines))


@pytest.mark.parametrize("schedule", ["1f1b", "zb"])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_stages_have_the_gradients_and_losses_of_the_whole_model(
    monkeypatch, count: int, schedule: str
):
    engines = stages(monkeypatch, (Front(), Back()), schedule=schedule)
    sums = accumulate(engines, range(1, count + 1))
    front, back = Front(), Back()
    expected = torch.zeros(4)
    for number in range(1, count + 1):
        given = batch(number)
        value, items = loss(
            back(front({IMAGE: given["img"].float() / 255}))[OUT], given, 2 * 3
        )  # three replicas
        value.backward()
        expected += torch.cat((items, torch.tensor([float(number)])))
    torch.testing.assert_close(sums[1], expected)
    assert not sums[0].any(), "the loss is where the last stage is"
    for engine, plain in zip(engines, (front, back), strict=True):
        for (name, mine), other in zip(
            engine.net.named_parameters(), plain.parameters(), strict=True
        ):
            if other.requires_grad:
                torch.testing.assert_close(mine.grad, other.grad, msg=name)
        assert engine.deepspeed.told == [("boundary", True), "reduce"], (
            "once a step, after all micro-batches"
        )


@pytest.mark.parametrize("schedule", ["1f1b", "zb"])
def test_a_stage_keeps_no_more_micro_batches_than_1f1b_says_and_ends_with_none(
    monkeypatch, schedule: str
):
    engines = stages(monkeypatch, (Front(), Back()), schedule=schedule)
    flights = [0, 0]
    for engine in engines:

        class Counted(dict):
            stage = engine.mesh.stage

            def __setitem__(self, key: int, value: Any) -> None:
                super().__setitem__(key, value)
                flights[self.stage] = max(flights[self.stage], len(self))

        engine._flights = Counted()
    accumulate(engines, range(1, 7))
    assert flights == [2, 1]
    assert not any(
        kept for each in engines for kept in (each._flights, each._ahead, each._deferred)
    )
    assert all(
        channel.left == 0
        for channel in (engines[0]._channels.to_after, engines[1]._channels.to_before)
    )


def test_zero_bubble_computes_weights_in_its_schedule_s_order_and_tells_when(monkeypatch):
    engines = stages(monkeypatch, (Front(), Back()), schedule="zb")
    told: list[list[tuple[str, int]]] = [[], []]
    for engine in engines:
        monkeypatch.setattr(engine.diagnosis, "at", lambda *at, own=told[engine.mesh.stage]:
                            own.append(at))  # fmt: skip
    phases = {"F": "forward", "B": "backward", "W": "backward"}
    for count in (3, 6):  # the second stage divides all passes, and the last one
        accumulate(engines, range(1, count + 1))
        for stage, seen in enumerate(told):
            assert seen == [(phases[kind], number) for kind, number in passes(2, stage, count)]
            seen.clear()
        front, back = (engine.times() for engine in engines)
        assert front.weights == 0 < back.weights and min(front.backward, back.backward) > 0
    assert engines[0].report().schedule == "zb"


def test_what_is_predicted_is_what_the_whole_model_says_and_on_the_last_stage_alone(monkeypatch):
    from yolods.model.architecture.build import architecture, build, parse_name
    from yolods.model.graph.graph import build_graph, live
    from yolods.model.graph.stage import Stage

    torch.manual_seed(0)
    net = build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b")).eval()
    graph = build_graph(net)
    middle = graph.nodes_of(13)[0]
    halves = [Stage(graph, 0, middle), Stage(graph, middle, len(graph.nodes))]
    for half in halves:
        half.load_state_dict({name: net.state_dict()[name] for name in half.state_dict()})
    detect = {"strides": tuple(net.stride.tolist()), "reg_max": net.model[-1].reg_max}
    engines = stages(
        monkeypatch, tuple(half.eval() for half in halves), live(graph, middle), **detect
    )
    images = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    assert engines[0].predict(images) is None
    boxes, raw = engines[1].predict(None)
    with torch.no_grad():
        expected, theirs = net(images.float() / 255)
    torch.testing.assert_close(boxes, expected, rtol=1e-5, atol=1e-4)
    assert torch.equal(raw["scores"], theirs["scores"])


def test_what_a_stage_sends_is_told_per_step_since_it_was_last_asked(monkeypatch):
    front, _ = engines = stages(monkeypatch, (Front(), Back()))
    accumulate(engines, range(1, 4))
    accumulate(engines, range(1, 2))
    values = 2 * 6 * 4 * 4 * 4  # images, channels, pixels, bytes
    assert front.report().stages[0].sent == (3 + 1) * values / 2
    accumulate(engines, range(1, 3))
    assert front.report().stages[0].sent == 2 * values


def test_rank_0_knows_every_stage_s_shards_and_whose_they_are(monkeypatch):
    front, back = stages(monkeypatch, (Front(), Back()))
    told = [
        (1, 1, "not asked for"),
        (0, 0, front.describe()),
        (1, 0, back.describe()),
        (0, 1, "nor this"),
    ]

    class Four(Ranks):
        def to_main(self, value: Any) -> list[Any]:
            return told

        def from_main(self, value: Any) -> Any:
            return value

    front.ranks = Four(0, 4, 0, "here", CPU)
    layout = front.layout()
    assert layout["stages"] == [front.describe(), back.describe()]
    assert layout["places"] == [[1, 1], [0, 0], [1, 0], [0, 1]]


@pytest.mark.parametrize(("stage", "replica"), [(0, 0), (1, 0), (1, 1)])
def test_the_first_replica_s_stages_hand_their_weights_to_rank_0(
    monkeypatch, stage: int, replica: int
):
    engine = stages(monkeypatch, (Front(), Back()))[stage]
    engine.mesh = SimpleNamespace(stages=2, stage=stage, replica=replica, host_group=None)
    engine.mesh.rank_at = lambda stage, replica: 10 * stage + replica
    engine.ranks = replace(engine.ranks, rank=10 * stage + replica, size=4)
    sent: list[Any] = []
    monkeypatch.setattr(
        module, "send_tensors", lambda leaves, peer, group: sent.append((dict(leaves), peer))
    )
    monkeypatch.setattr(
        module, "receive_tensors", lambda peer, group: iter([(f"of {peer}", torch.ones(1))])
    )
    state = {"mine": torch.zeros(1)} if replica == 0 else {}
    found = dict(engine._collect(iter(state.items())))
    assert list(found) == (["mine", "of 10"] if stage == 0 else [])
    assert sent == ([(state, 0)] if (stage, replica) == (1, 0) else [])
