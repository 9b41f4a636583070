"""The moving average kept on master weights: ultralytics' own, and exchanged without a trace.
Shards: tests/parity."""

import copy

import pytest
import torch

from yolods.model.architecture.build import architecture, build, parse_name
from yolods.optim.ema import ShardedEma
from yolods.system.interrupt import Stopped
from yolods.zero.master_weights import PlainMasters


@pytest.fixture
def net():
    torch.manual_seed(0)
    return build(architecture(parse_name("yolov5[0.1,0.1]"), 2, 3), ("a", "b"))


def average_of(net, decay=0.9999, tau=2000):
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD([{"params": trained[:10]}, {"params": trained[10:]}], lr=0.1)
    statistics = [buffer for buffer in net.buffers() if buffer.is_floating_point()]
    return ShardedEma(PlainMasters(optimizer), statistics, decay=decay, tau=tau)


def move(net, step):
    generator = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for tensor in (*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())):
            if tensor.requires_grad or "float" in str(tensor.dtype):
                tensor.add_(torch.rand(tensor.shape, generator=generator))


def test_it_is_ultralytics_average(net):
    from ultralytics.utils.torch_utils import ModelEMA

    net.model[-1].dfl.conv.weight.data = net.model[-1].dfl.conv.weight.data.clone()
    theirs, ours = ModelEMA(net), average_of(net)
    for step in range(5):
        frozen = net.model[-1].dfl.conv.weight.data.clone()
        move(net, step)
        net.model[-1].dfl.conv.weight.data.copy_(frozen)
        theirs.update(net)
        ours.update()
    with ours.exchange():
        for name, tensor in theirs.ema.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-6, atol=1e-6)
    assert ours.updates == theirs.updates == 5


def test_an_exchange_leaves_no_trace(net):
    average = average_of(net)
    move(net, 1)
    average.update()
    before = copy.deepcopy(net.state_dict()), copy.deepcopy(average.state_dict())
    with average.exchange():
        assert not torch.equal(
            net.state_dict()["model.0.conv.weight"], before[0]["model.0.conv.weight"]
        )
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before[0].items())
    for key in ("shards", "buffers"):
        assert all(map(torch.equal, before[1][key], average.state_dict()[key]))


def test_an_exchange_is_undone_when_all_ranks_stop_in_it(net):
    average = average_of(net)
    move(net, 1)
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(Stopped), average.exchange():
        raise Stopped()
    assert all(torch.equal(tensor, net.state_dict()[name]) for name, tensor in before.items())


def test_a_rank_that_fails_in_an_exchange_waits_for_nobody(net, monkeypatch):
    """Undoing it is a collective: the others are elsewhere, and the failure would never be told."""
    average = average_of(net)
    swaps = []
    monkeypatch.setattr(average, "_swap", lambda: swaps.append("swap"))
    with pytest.raises(RuntimeError, match="evaluation failed"), average.exchange():
        raise RuntimeError("evaluation failed")
    assert swaps == ["swap"]


def test_it_comes_back_from_a_checkpoint(net):
    average = average_of(net)
    move(net, 1)
    average.update()
    saved = copy.deepcopy(average.state_dict())
    move(net, 2)
    average.update()
    other = average_of(net)
    other.load_state_dict(saved)
    assert other.updates == 1
    assert all(map(torch.equal, other.state_dict()["shards"], saved["shards"]))
    other.update()
    assert all(map(torch.equal, other.state_dict()["shards"], average.state_dict()["shards"]))


@pytest.mark.parametrize("part", ["shards", "buffers"])
def test_the_shards_of_another_layout_are_refused(net, part):
    average = average_of(net)
    saved = copy.deepcopy(average.state_dict())
    saved[part] = [tensor[:1] if tensor.ndim else tensor for tensor in saved[part]]
    with pytest.raises(
        ValueError, match=f"the {part} of the saved average do not have this layout"
    ):
        average.load_state_dict(saved)


def test_literal_decay():
    """1 - 0.9999 (1 - exp(-1 / 2000)) of the way after the first update: the average starts almost
    as the weights."""
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    statistic = torch.zeros(1, dtype=torch.float64)
    average = ShardedEma(
        PlainMasters(torch.optim.SGD([weight], lr=1.0)), [statistic], decay=0.9999, tau=2000
    )
    weight.data.fill_(1.0)
    statistic.fill_(-2.0)
    average.update()
    assert average.state_dict()["shards"][0].item() == pytest.approx(0.99950017, abs=1e-8)
    assert average.state_dict()["buffers"][0].item() == pytest.approx(-1.99900035, abs=1e-8)
