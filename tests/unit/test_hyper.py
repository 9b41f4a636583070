"""Hyper-parameters: ultralytics' names and defaults, three sources, and what is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from yolods.config.hyper import OWN, RULES, Given, Hyper, read_hyper
from yolods.config.paths import cache_dir
from yolods.config.refused import ALWAYS, FLAGS, REFUSED, YOLOV5
from yolods.errors import Faults

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def default_yaml() -> dict:
    """The installed ultralytics' defaults, found without importing it."""
    spec = importlib.util.find_spec("ultralytics")
    assert spec is not None and spec.submodule_search_locations
    return yaml.safe_load((Path(spec.submodule_search_locations[0]) / "cfg" / "default.yaml").read_text("utf-8"))


def read(tmp_path: Path, text: str = "", sets: tuple[str, ...] = (), flags: tuple[Given, ...] = ()):
    file = tmp_path / "hyp.yaml"
    file.write_text(text, encoding="utf-8")
    faults = Faults()
    return read_hyper(file, sets, faults, flags), list(faults)


def test_every_ultralytics_setting_is_taken_refused_or_a_flag_and_no_other_is(default_yaml):
    taken = {name for name in RULES if name not in OWN}
    flags = {name for name in FLAGS if name not in ("weights", "batch_size", "deepspeed_config")}
    assert taken | set(REFUSED) | flags == set(default_yaml)
    assert not taken & set(REFUSED)
    assert not flags & (taken | set(REFUSED))


def test_defaults_are_ultralytics(default_yaml):
    ours = {name: value for name, value in Hyper().as_ultralytics().items()}
    assert ours == {name: default_yaml[name] for name in ours}


def test_refused_settings_know_ultralytics_defaults(default_yaml):
    known = {name: default for name, (default, _) in REFUSED.items() if default is not ALWAYS}
    assert known == {name: default_yaml[name] for name in known}


def test_defaults_keep_to_their_own_rules():
    for name, rule in RULES.items():
        assert rule.parse(getattr(Hyper(), name)) == getattr(Hyper(), name), name


def test_a_copy_of_default_yaml_asks_for_nothing_but_amp(tmp_path, default_yaml):
    text = yaml.safe_dump(default_yaml)
    result, faults = read(tmp_path, text)
    assert len(faults) == 1 and ": amp is not taken: precision is in the DeepSpeed JSON" in faults[0]
    assert result.hyper == Hyper()
    assert result.flags == {"epochs": 100, "batch_size": 16, "imgsz": 640, "workers": 8}


def test_every_hyper_parameter_can_be_changed_and_reaches_ultralytics(tmp_path):
    """No key is read and then forgotten."""
    other = {
        "optimizer": "SGD", "scale": [0.5, 2.0], "copy_paste_mode": "mixup", "freeze": [0, 2], "pretrained": False,
        "classes": [1], "fraction": 0.5, "cache": "ram", "conf": 0.1, "channels_last": False, "save_period": 3,
    }  # fmt: skip
    for name in RULES:
        default = getattr(Hyper(), name)
        if name in other:
            value = other[name]
        elif isinstance(default, bool):
            value = not default
        elif isinstance(default, int):
            value = default + 1
        else:
            value = default / 2 if default else 0.25
        result, faults = read(tmp_path, sets=(f"{name}={value}",))
        assert faults == []
        now = result.hyper.as_dict()
        assert now.pop(name) == value
        unchanged = Hyper().as_dict()
        del unchanged[name]
        assert now == unchanged
        if name not in OWN:
            assert result.hyper.as_ultralytics()[name] == value


def test_command_line_wins_over_file_and_file_over_defaults(tmp_path):
    result, faults = read(tmp_path, "lr0: 0.1\nmosaic: 0.5\n", ("lr0=0.2",))
    assert faults == []
    assert (result.hyper.lr0, result.hyper.mosaic, result.hyper.mixup) == (0.2, 0.5, 0.0)
    assert result.commanded == {"lr0": "--set lr0"}
    assert result.filed == {"lr0": "hyp.yaml line 1: lr0", "mosaic": "hyp.yaml line 2: mosaic"}


def test_exponents_without_a_dot_are_numbers(tmp_path):
    """YAML 1.1 takes 1e-3 for text."""
    result, faults = read(tmp_path, "lr0: 1e-3\n", ("lrf=5e-2",))
    assert faults == []
    assert (result.hyper.lr0, result.hyper.lrf) == (0.001, 0.05)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mosaic: 1.5", "hyp.yaml line 1: mosaic is 1.5: it has to be a number in [0, 1]"),
        ("\nlrf: 0", "hyp.yaml line 2: lrf is 0: it has to be a number in (0, 1]"),
        ("momentum: 1", "hyp.yaml line 1: momentum is 1: it has to be a number in [0, 1)"),
        ("nbs: 0", "hyp.yaml line 1: nbs is 0: it has to be a whole number of at least 1"),
        ("nbs: 6.5", "hyp.yaml line 1: nbs is 6.5: it has to be a whole number of at least 1"),
        ("cos_lr: 1", "hyp.yaml line 1: cos_lr is 1: it has to be true or false"),
        ("lr0: true", "hyp.yaml line 1: lr0 is true: it has to be a number in (0, 1]"),
        ("lr0: .nan", "hyp.yaml line 1: lr0 is nan: it has to be a number in (0, 1]"),
        ("box: .inf", "hyp.yaml line 1: box is inf: it has to be a number of at least 0"),
        ("lr0:", "hyp.yaml line 1: lr0 is empty: it has to be a number in (0, 1]"),
        ("optimizer: Lamb", "optimizer is 'Lamb': it has to be one of auto, SGD, Adam, AdamW"),
        ("optimizer: MuSGD", "optimizer is 'MuSGD': it needs whole matrices, and a ZeRO rank holds a shard"),
        ("cache: disk", "cache is 'disk': that writes .npy files beside the images"),
        ("scale: [1, 2, 3]", "scale is [1, 2, 3]: it has to be a number in [0, 1], or a pair [smallest, largest]"),
        ("fraction: 0", "fraction is 0: it has to be a number in (0, 1], or a whole number of at least 1"),
        ("freeze: -1", "freeze is -1: it has to be a whole number of at least 0, or a list of layer numbers"),
        ("mosaik: 1", "mosaik is not a hyper-parameter (did you mean 'mosaic'?); docs/configuration.md lists them"),
        ("amp: true", "amp is not taken: precision is in the DeepSpeed JSON"),
        ("pose: 1.0", "pose is not taken: it belongs to pose estimation"),
        ("anchor_t: 4", "anchor_t is not taken: YOLOv5 here is YOLOv5u, which has no anchors"),
        ("data: x.yaml", "data is not a hyper-parameter: use --data"),
        ("device: 0", "device is not a hyper-parameter: use the launcher's --num_gpus"),
        ("lr0: 0.1\nlr0: 0.2", "hyp.yaml line 2: lr0 stands in line 1 already; keep one"),
        ("lr0: [", "line 2: not valid yaml: "),
        ("- lr0", "it has to hold lines of `key: value`"),
    ],
)
def test_one_line_for_each_mistake_in_a_file(tmp_path, text, message):
    result, faults = read(tmp_path, text + "\n")
    assert len(faults) == 1
    assert message in faults[0]
    assert "\n" not in faults[0]
    assert dataclasses.replace(result.hyper, lr0=0.01) == Hyper()


def test_a_missing_file(tmp_path):
    faults = Faults()
    assert read_hyper(tmp_path / "no.yaml", [], faults).hyper == Hyper()
    assert list(faults) == [f"--hyp {tmp_path / 'no.yaml'}: no such file"]


def test_every_yolov5_name_has_its_reason(tmp_path):
    result, faults = read(tmp_path, "".join(f"{name}: 1\n" for name in YOLOV5))
    assert len(faults) == len(YOLOV5)
    assert all(" is not taken: " in fault for fault in faults)
    assert result.hyper == Hyper()


def test_gains_of_an_original_yolov5_file_are_not_taken_unseen(tmp_path):
    """There box is 0.05 by default; here that would all but switch the loss off."""
    result, faults = read(tmp_path, "box: 0.05\ncls_pw: 1.0\nobj: 1.0\n")
    assert result.hyper == Hyper()
    assert sum("this is a file of the original yolov5 (it has obj)" in fault for fault in faults) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lr0", "--set lr0: write it as --set key=value, for example --set lr0=0.01"),
        ("=1", "--set =1: write it as --set key=value, for example --set lr0=0.01"),
        ("lr0=[", "--set lr0=[: the value cannot be read; lists are written as [1, 2]"),
        ("lr0=2", "--set lr0 is 2: it has to be a number in (0, 1]"),
        ("epochs=3", "--set epochs is not a hyper-parameter: use --epochs"),
        ("amp=false", "--set amp is not taken"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, words, message):
    _, faults = read(tmp_path, sets=(words,))
    assert len(faults) == 1 and faults[0].startswith(message)


def test_a_key_that_the_command_line_gives_twice_has_to_agree(tmp_path):
    _, faults = read(tmp_path, sets=("seed=1",), flags=(Given("seed", 2, "--seed"),))
    assert faults == ["seed is given twice: 1 by --set seed and 2 by --seed; keep one"]
    _, faults = read(tmp_path, sets=("seed=1",), flags=(Given("seed", 1, "--seed"),))
    assert faults == []


@pytest.mark.parametrize(("given", "stored"), [("sgd", "SGD"), ("RMSProp", "RMSprop"), ("ADAMW", "AdamW")])
def test_optimizers_are_spelt_as_torch_spells_them(tmp_path, given, stored):
    result, faults = read(tmp_path, sets=(f"optimizer={given}",))
    assert faults == [] and result.hyper.optimizer == stored


def test_cache_true_means_ram(tmp_path):
    result, _ = read(tmp_path, "cache: true\n")
    assert result.hyper.cache == "ram"


def test_the_manual_lists_every_hyper_parameter_with_its_default():
    manual = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    for name, value in Hyper().as_dict().items():
        if isinstance(value, bool):
            default = str(value).lower()
        else:
            default = "empty" if value is None else value if isinstance(value, str) else f"{value:g}"
        assert f"| `{name}` | {default} | {RULES[name].permitted} |" in manual


def test_the_manual_says_why_each_other_setting_is_not_taken():
    manual = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in (*REFUSED, *YOLOV5) if f"`{name}`" not in manual] == []


def test_configuration_needs_neither_torch_nor_ultralytics():
    code = (
        "import sys, yolods.config, yolods.cluster.launch;"
        "print([name for name in ('torch', 'ultralytics', 'deepspeed', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"YOLODS_CACHE": "/a/b", "XDG_CACHE_HOME": "/x"}, Path("/a/b")),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/yolods")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "yolods"),
        ({}, Path.home() / ".cache" / "yolods"),
    ],
)
def test_where_the_cache_is(environ, expected):
    assert cache_dir(environ) == expected
