"""Words of a Python call as flags: all that the command line takes, and remedies in words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from yolods.api.words import flags_of
from yolods.commands.parsers import train_parser
from yolods.config.hyper.hyperparameters import RULES
from yolods.errors import Faults, UserError
from yolods.launch.args import read_words


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        ({"data": "demo", "epochs": 1, "imgsz": 64}, ["--data=demo", "--epochs=1", "--imgsz=64"]),
        ({"data": Path("a b.yaml"), "model": None}, ["--data=a b.yaml"]),
        ({"exist_ok": True, "check_data": False, "resume": True}, ["--exist-ok", "--resume"]),
        ({"resume": "runs/exp"}, ["--resume=runs/exp"]),
        ({"name": "-x"}, ["--name=-x"]),
        ({"lr0": 0.01, "mosaic": 0}, ["--set", "lr0=0.01", "--set", "mosaic=0"]),
        ({"freeze": [0, "24.cv2"]}, ["--set", 'freeze=[0, "24.cv2"]']),
        ({"val": False, "optimizer": "SGD"}, ["--set", "val=false", "--set", "optimizer=SGD"]),
        ({"set": {"cls_pw": 0.5, "classes": (0, 2)}}, ["--set", "cls_pw=0.5"]),
        ({"set": ["a=1", "b=2"]}, ["--set", "a=1", "--set", "b=2"]),
        ({"set": "a=1"}, ["--set", "a=1"]),
        ({"loggers": ["wandb", "jsonl"]}, ["--loggers=wandb,jsonl"]),
        ({"batch": 8, "num_gpus": 2}, ["--batch=8", "--num-gpus=2"]),
        ({"noval": True}, ["--noval"]),
        ({"trace": 5}, ["--trace=5"]),
        ({"epochs": np.int64(3), "exist_ok": np.True_}, ["--epochs=3", "--exist-ok"]),
        ({"lr0": np.float32(0.5), "val": np.False_}, ["--set", "lr0=0.5", "--set", "val=false"]),
        ({"freeze": np.arange(2)}, ["--set", "freeze=[0, 1]"]),
        ({"freeze": range(2)}, ["--set", "freeze=[0, 1]"]),
        ({"set": {"freeze": [np.int32(4)]}}, ["--set", "freeze=[4]"]),
    ],
)
def test_words_become_flags(words, flags):
    assert flags_of(words)[: len(flags)] == flags


def test_the_command_line_reads_what_is_made():
    words = flags_of(
        {"data": "demo", "batch_size": 8, "lr0": 0.1, "hostfile": "hosts", "cos_lr": True}
    )
    faults = Faults()
    launch, rest = read_words(["train", *words], faults)
    args = train_parser().read(rest[1:])
    assert not faults and not args.faults
    assert launch.hostfile == Path("hosts")
    assert (args.data, args.batch_size, args.set) == ("demo", 8, ["lr0=0.1", "cos_lr=true"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ({"epoch": 1}, "epoch: unknown word (did you mean 'epochs'?); docs/"),
        ({"mosaik": 1}, "mosaik: unknown (did you mean the hyper-parameter 'mosaic'?)"),
        ({"device": "0"}, "device is not supported: choose devices with the launcher's"),
        ({"conf_thres": 0.1}, "conf_thres: write conf=VALUE"),
        ({"amp": True}, "amp is not supported: set the precision in the DeepSpeed JSON"),
        ({"no_ssh": True}, "no_ssh: a start on every host"),
        ({"run_dir": "x"}, "run_dir: unknown word"),
        ({"exist_ok": 3}, "exist_ok is 3: it must be True or False"),
        ({"data": {"train": 1}}, "data is a dict: it must be text or a number"),
        ({"data": b"demo"}, "data is a bytes: it must be text or a number"),
        ({"set": 5}, "set is 5: it must be a dict, such as {'lr0': 0.01}"),
        ({"name": "a\0b"}, "name has a NUL character"),
    ],
)
def test_wrong_words_are_refused_in_words(words, told):
    with pytest.raises(UserError) as caught:
        flags_of(words)
    assert str(caught.value).startswith(told)
    assert "--" not in str(caught.value)


def test_all_faults_are_reported_together():
    with pytest.raises(UserError) as caught:
        flags_of({"epoch": 1, "datta": "demo"})
    assert len(str(caught.value).splitlines()) == 2


def test_every_hyper_parameter_is_a_word():
    assert all(flags_of({name: 1}) == ["--set", f"{name}=1"] for name in RULES)
