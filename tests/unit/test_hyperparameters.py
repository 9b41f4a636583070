"""Hyper-parameters: ultralytics' names and defaults, three sources, and what is refused by name."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from yolods.config.hyper.hyperparameters import OWN, RULES, Given, Hyper, read_hyper
from yolods.config.hyper.unsupported import ALWAYS, FLAGS, REFUSED, YOLOV5
from yolods.config.hyper.unused import unused
from yolods.config.optimizers.unsupported import UNSUPPORTED
from yolods.errors import Faults
from yolods.system.folders import cache_dir

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def default_yaml() -> dict:
    """The installed ultralytics' defaults, found without importing it."""
    spec = importlib.util.find_spec("ultralytics")
    assert spec is not None and spec.submodule_search_locations
    return yaml.safe_load(
        (Path(spec.submodule_search_locations[0]) / "cfg" / "default.yaml").read_text("utf-8")
    )


def read(tmp_path: Path, text: str = "", sets: tuple[str, ...] = (), flags: tuple[Given, ...] = ()):
    file = tmp_path / "hyp.yaml"
    file.write_text(text, encoding="utf-8")
    faults = Faults()
    return read_hyper(file, sets, faults, flags), list(faults)


def test_every_ultralytics_setting_is_taken_refused_or_a_flag_and_no_other_is(default_yaml):
    taken = {name for name in RULES if name not in OWN}
    ours = ("weights", "batch_size", "deepspeed_config", "trace")
    flags = {name for name in FLAGS if name not in ours}
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


def test_a_copy_of_default_yaml_passes_as_a_hyp_file(tmp_path, default_yaml):
    text = yaml.safe_dump(default_yaml)
    result, faults = read(tmp_path, text)
    assert faults == []
    assert result.hyper == Hyper()
    assert result.flags == {"epochs": 100, "batch_size": 16, "imgsz": 640, "workers": 8}
    assert result.notes == (
        "hyp.yaml line 2: amp is true, which has no effect: set the precision in the DeepSpeed "
        "JSON",
    )


def test_an_args_yaml_passes_as_a_hyp_file_and_what_is_the_flags_to_say_is_said(
    tmp_path, default_yaml
):
    """What ultralytics leaves in a run: its settings with the values of that run, and where it
    lay."""
    left = default_yaml | {
        **{
            "model": "yolov5nu.yaml",
            "data": "coco8.yaml",
            "epochs": 3,
            "batch": 8,
            "device": "0",
            "name": "train5",
        },
        **{
            "project": "work",
            "exist_ok": True,
            "save_dir": "work/train5",
            "lr0": 0.02,
            "optimizer": "SGD",
        },
    }
    result, faults = read(tmp_path, yaml.safe_dump(left, sort_keys=False))
    assert faults == []
    assert (result.hyper.optimizer, result.hyper.lr0) == ("SGD", 0.02)
    assert result.flags == {
        **{
            "model": "yolov5nu.yaml",
            "data": "coco8.yaml",
            "epochs": 3,
            "batch_size": 8,
            "imgsz": 640,
            "workers": 8,
        },
    }
    named = [note.split(": ")[1].split(" is ")[0] for note in result.notes]
    assert sorted(named) == ["amp", "device", "exist_ok", "name", "project", "save_dir"]


def test_an_args_yaml_of_an_earlier_ultralytics_passes_too(tmp_path, default_yaml):
    """Of 8.0 to 8.3: settings that are gone since, and defaults that have changed."""
    earlier = {
        **{
            "tracker": "botsort.yaml",
            "nms": False,
            "half": False,
            "int8": False,
            "keras": False,
            "crop_fraction": 1.0,
        },
        **{
            "label_smoothing": 0.0,
            "multi_scale": False,
            "workspace": 4,
            "simplify": False,
            "save_hybrid": False,
        },
    }
    result, faults = read(tmp_path, yaml.safe_dump(default_yaml | earlier))
    assert faults == [] and result.hyper == Hyper()
    assert len(read(tmp_path, "half: true\nlabel_smoothing: 0.1\nkeras: true\n")[1]) == 3


@pytest.mark.parametrize(
    "words", ["rect=False", "cfg=None", "dropout=0", "dis=6", "save=true", "nms=None"]
)
def test_a_default_of_ultralytics_asks_for_nothing_on_the_command_line_either(tmp_path, words):
    result, faults = read(tmp_path, sets=(words,))
    assert faults == [] and result.hyper == Hyper() and result.commanded == {}


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("classes=1", "classes", (1,)),
        ("classes=0", "classes", (0,)),
        ("classes=0,2", "classes", (0, 2)),
        ("classes=[0, 2]", "classes", (0, 2)),
        ("classes=None", "classes", None),
        ("freeze=0,1,24.cv2", "freeze", (0, 1, "24.cv2")),
        ("freeze=[]", "freeze", None),
        ("freeze=none", "freeze", None),
        ("scale=0.5,1.5", "scale", (0.5, 1.5)),
        ("scale=(0.5,1.5)", None, "scale is "),
        ("conf=None", "conf", None),
        ("conf=0", "conf", 0.0),
        ("cos_lr=True", "cos_lr", True),
        ("cos_lr=1", None, "cos_lr is 1"),
        ("cache=True", "cache", "ram"),
        ("cache=False", "cache", False),
        ("cache=0", None, "cache is 0"),
        ("multi_scale=False", "multi_scale", 0.0),
        ("multi_scale=True", None, "multi_scale is true"),
        ("pretrained=False", "pretrained", False),
        ("momentum=0", "momentum", 0.0),
        ("save_period=0", "save_period", 0),
        ("patience=0", "patience", 0),
        ("close_mosaic=0", "close_mosaic", 0),
        ("fraction=1", "fraction", 1.0),
        ("fraction=4", "fraction", 4),
        ("fraction=[0.5,0.5]", None, "fraction is [0.5, 0.5]"),
        ("classes=cat", None, "classes is 'cat'"),
        ("classes=true", None, "classes is true"),
        ("freeze=backbone", None, "freeze is 'backbone'"),
    ],
)
def test_documented_alternative_forms_work_or_are_refused_by_name(tmp_path, words, key, value):
    result, faults = read(tmp_path, sets=(words,))
    if key is None:
        assert len(faults) == 1 and value in faults[0]
    else:
        assert faults == [] and getattr(result.hyper, key) == value


EDGES = (
    None,
    True,
    False,
    0,
    1,
    -1,
    0.5,
    1.0,
    1e9,
    "",
    "0",
    "x",
    "None",
    [],
    [0],
    [0, 1],
    {},
    float("nan"),
    "1e-3",
)


@pytest.mark.parametrize("name", RULES)
def test_every_value_of_every_key_is_taken_or_refused_by_name(tmp_path, name):
    for value in EDGES:
        faults = Faults()
        read = read_hyper(None, [], faults, [Given(name, value, f"--set {name}")])
        assert len(faults) <= 1 and all(line.startswith(f"--set {name} is ") for line in faults)
        # What is taken survives config.json, and ultralytics takes it.
        again = read_hyper(
            None, [], Faults(), [Given(*item, "x") for item in read.hyper.as_dict().items()]
        )
        assert again.hyper == read.hyper


@pytest.mark.parametrize(
    ("sets", "line"),
    [
        (
            ("lr0=0.5",),
            "--set lr0 is 0.5, which has no effect: optimizer=auto chooses the optimizer, its "
            "learning rate",
        ),
        (
            ("momentum=0.5",),
            "--set momentum is 0.5, which has no effect in runs of up to 10,000 steps: "
            "optimizer=auto",
        ),
        (
            ("momentum=0.5", "warmup_epochs=0"),
            "--set momentum is 0.5, which has no effect: optimizer=auto",
        ),
        (
            ("warmup_momentum=0.5",),
            "--set warmup_momentum is 0.5, which has no effect in runs of up to 10,000 steps: "
            "optimizer=auto",
        ),
        (("warmup_bias_lr=0",), "--set warmup_bias_lr is 0.0, which has no effect: optimizer=auto"),
        (("lr0=0.5", "optimizer=SGD"), None),
        (("optimizer=auto",), None),
        (("lr0=0.01",), "--set lr0 is 0.01, which has no effect: optimizer=auto"),
        (("lr0=0.01", "optimizer=SGD"), None),
        (
            ("warmup_momentum=0.5", "optimizer=AdamW"),
            "only SGD and RMSprop have a momentum that is warmed up",
        ),
        (("warmup_momentum=0.5", "optimizer=RMSprop"), None),
        (("warmup_bias_lr=0.2", "optimizer=SGD", "warmup_epochs=0"), "warmup_epochs is 0"),
        (("patience=5", "val=false"), "without evaluations"),
        (("close_mosaic=5", "mosaic=0"), "mosaic, mixup, cutmix and copy_paste are all 0"),
        (("close_mosaic=5", "mosaic=0", "mixup=0.5"), None),
        (("copy_paste_mode=mixup",), "copy_paste is 0"),
    ],
)
def test_a_value_that_counts_for_nothing_is_said(tmp_path, sets, line):
    result, faults = read(tmp_path, sets=sets)
    assert faults == []
    lines = unused(result, result.hyper)
    assert (lines == ()) if line is None else (len(lines) == 1 and line in lines[0])


def test_a_value_of_the_hyp_file_that_counts_for_nothing_is_said_with_its_line(tmp_path):
    result, _ = read(tmp_path, "mosaic: 0.5\nlr0: 0.02\n")
    (line,) = unused(result, result.hyper)
    assert line.startswith(
        "hyp.yaml line 2: lr0 is 0.02, which has no effect: optimizer=auto chooses"
    )


def test_a_default_in_a_hyp_file_is_no_value_that_someone_will_miss(tmp_path):
    result, _ = read(tmp_path, "lr0: 0.01\nmomentum: 0.937\n")
    assert unused(result, result.hyper) == ()


def test_every_hyper_parameter_can_be_changed_and_reaches_ultralytics(tmp_path):
    """No key is read and then forgotten."""
    other = {
        "optimizer": "SGD", "scale": [0.5, 2.0], "copy_paste_mode": "mixup", "freeze": [0, 2],
        "pretrained": False, "classes": [1], "fraction": 0.5, "cache": "ram", "conf": 0.1,
        "channels_last": False, "save_period": 3, "mosaic_partners": "block",
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
        ("mosaic: 1.5", "hyp.yaml line 1: mosaic is 1.5: it must be a number in [0, 1]"),
        ("\nlrf: 0", "hyp.yaml line 2: lrf is 0: it must be a number in (0, 1]"),
        ("momentum: 1", "hyp.yaml line 1: momentum is 1: it must be a number in [0, 1)"),
        ("nbs: 0", "hyp.yaml line 1: nbs is 0: it must be a whole number of at least 1"),
        ("nbs: 6.5", "hyp.yaml line 1: nbs is 6.5: it must be a whole number of at least 1"),
        ("cos_lr: 1", "hyp.yaml line 1: cos_lr is 1: it must be true or false"),
        ("lr0: true", "hyp.yaml line 1: lr0 is true: it must be a number in (0, 1]"),
        ("lr0: .nan", "hyp.yaml line 1: lr0 is nan: it must be a number in (0, 1]"),
        ("box: .inf", "hyp.yaml line 1: box is inf: it must be a number of at least 0"),
        ("lr0:", "hyp.yaml line 1: lr0 is empty: it must be a number in (0, 1]"),
        (
            "optimizer: Lamb",
            "optimizer is 'Lamb': DeepSpeed has it only as a kernel that must be compiled",
        ),
        ("optimizer: Sofia", "optimizer is 'Sofia': it must be one of auto, SGD, Adam, AdamW"),
        (
            "optimizer: MuSGD",
            "optimizer is 'MuSGD': it needs whole weight matrices, but ranks under ZeRO",
        ),
        ("cache: disk", "cache is 'disk', which would write .npy files beside the images"),
        (
            "scale: [1, 2, 3]",
            "scale is [1, 2, 3]: it must be a number in [0, 1], or a pair [smallest, largest]",
        ),
        (
            "fraction: 0",
            "fraction is 0: it must be a number in (0, 1], or a whole number of at least 1",
        ),
        (
            "freeze: -1",
            "freeze is -1: it must be a whole number of at least 0, or a list of layer numbers",
        ),
        (
            "mosaik: 1",
            "mosaik is not a hyper-parameter (did you mean 'mosaic'?); docs/configuration.md lists "
            "them",
        ),
        ("mosaic_partner: all", "(did you mean 'mosaic_partners'?)"),
        ("mosaic_partners: none", "mosaic_partners is 'none': it must be one of auto, all, block"),
        ("pose: 1.0", "pose is not supported: it is for pose estimation"),
        ("anchor_t: 4", "anchor_t is not supported: YOLOv5 here is YOLOv5u, which has no anchors"),
        ("weights: x.pt", "weights is not a hyper-parameter: use --weights"),
        ("lr0: 0.1\nlr0: 0.2", "hyp.yaml line 2: lr0 is already on line 1; keep one"),
        ("lr0: [", "line 2: not valid yaml: "),
        ("- lr0", "it must contain `key: value` lines"),
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
    assert all(" is not supported: " in fault for fault in faults)
    assert result.hyper == Hyper()


def test_gains_of_an_original_yolov5_file_are_not_taken_unseen(tmp_path):
    """There box is 0.05 by default; here that would all but switch the loss off."""
    result, faults = read(tmp_path, "box: 0.05\ncls_pw: 1.0\nobj: 1.0\n")
    assert result.hyper == Hyper()
    assert (
        sum(
            "this file belongs to the original yolov5 (it contains obj)" in fault
            for fault in faults
        )
        == 2
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("lr0", "--set lr0: write it as --set key=value, for example --set lr0=0.01"),
        ("=1", "--set =1: write it as --set key=value, for example --set lr0=0.01"),
        ("lr0=[", "--set lr0=[: cannot parse the value; write lists as [1, 2]"),
        ("lr0=2", "--set lr0 is 2: it must be a number in (0, 1]"),
        ("epochs=3", "--set epochs is not a hyper-parameter: use --epochs"),
        ("amp=false", "--set amp is not supported"),
        ("data=x.yaml", "--set data is not a hyper-parameter: use --data"),
        ("device=0", "--set device is not a hyper-parameter: use the launcher's --num_gpus"),
    ],
)
def test_mistakes_on_the_command_line(tmp_path, words, message):
    _, faults = read(tmp_path, sets=(words,))
    assert len(faults) == 1 and faults[0].startswith(message)


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_an_optimizer_gets_the_same_reason_on_the_command_line_as_in_the_json(name):
    faults = Faults()
    read_hyper(None, [], faults, [Given("optimizer", name.lower(), "--optimizer")])
    assert list(faults) == [f"--optimizer is {name.lower()!r}: {UNSUPPORTED[name]}"]


def test_a_key_that_the_command_line_gives_twice_has_to_agree(tmp_path):
    _, faults = read(tmp_path, sets=("seed=1",), flags=(Given("seed", 2, "--seed"),))
    assert faults == ["seed is set twice: to 1 by --set seed and to 2 by --seed; keep one"]
    _, faults = read(tmp_path, sets=("seed=1",), flags=(Given("seed", 1, "--seed"),))
    assert faults == []


@pytest.mark.parametrize(
    ("given", "stored"), [("sgd", "SGD"), ("RMSProp", "RMSprop"), ("ADAMW", "AdamW")]
)
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
            default = (
                "empty" if value is None else value if isinstance(value, str) else f"{value:g}"
            )
        assert f"| `{name}` | {default} | {RULES[name].permitted} |" in manual


def test_the_manual_says_why_each_other_setting_is_not_taken():
    manual = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert [name for name in (*REFUSED, *YOLOV5) if f"`{name}`" not in manual] == []


@pytest.mark.process
def test_configuration_needs_neither_torch_nor_ultralytics():
    code = (
        "import sys, yolods.config, yolods.launch.command;"
        "print([name for name in ('torch', 'ultralytics', 'deepspeed', 'numpy') "
        "if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
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
