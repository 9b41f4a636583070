"""Hyper-parameters: ultralytics' names and defaults, overridden by a hyp yaml, then by `--set`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from yolods.config.hyper.unsupported import (
    ALWAYS,
    EARLIER,
    FLAGS,
    FLAGS_IN_FILE,
    NOT_USED,
    REFUSED,
    YOLOV5,
    YOLOV5_GAINS,
)
from yolods.config.optimizers.supported import LR, MOMENTUM, OPTIMIZERS, WEIGHT_DECAY
from yolods.config.optimizers.unsupported import why_untrained
from yolods.errors import Faults, nearest
from yolods.parsing.rules import (
    Rule,
    check,
    either,
    flag,
    items,
    one_of,
    optional,
    real,
    setting,
    shown,
    single,
    text,
    whole,
)
from yolods.parsing.yaml_file import NotYaml, parse_entries, parse_yaml

_LAYERS = items(either(whole(0), text()), what="a list of layer numbers or module names")
_FREEZE = optional(
    either(
        whole(0),
        Rule(_LAYERS.permitted, lambda value: None if value == [] else _LAYERS.parse(value)),
    )
)
_CLASSES = optional(either(single(whole(0)), items(whole(0), what="a list of class ids")))
_SCALE = either(
    real(0, 1),
    items(real(0, above=True), count=2, what="a pair [smallest, largest] of positive factors"),
)
_FRACTION = either(real(0, 1, above=True), whole(1))


def _share() -> Rule:
    """A share below 1; false means 0, because earlier versions of ultralytics write the default
    that way."""
    rule = real(0, 1, below=True)
    return Rule(rule.permitted, lambda value: 0.0 if value is False else rule.parse(value))


def _cache() -> Rule:
    def parse(value: Any) -> bool | str:
        if not isinstance(value, bool) and value != "ram":
            raise ValueError
        return "ram" if value else False

    return Rule("false, true or 'ram'", parse)


def _optimizer() -> Rule:
    """`auto`, or a name in `OPTIMIZERS`. Looked up at each use, so that an optimizer added later is
    accepted."""
    return Rule(_optimizers().permitted, lambda value: _optimizers().parse(value))


def _optimizers() -> Rule:
    return one_of("auto", *OPTIMIZERS)


# Wide: one field for each of ultralytics' hyper-parameters, which users know by these names.
@dataclass(frozen=True, kw_only=True)
class Hyper:
    """Every hyper-parameter of a run. The defaults are those of ultralytics 8.4.190."""

    optimizer: str = setting("auto", _optimizer())
    """A name in `OPTIMIZERS`; auto chooses it, lr0 and momentum by the number of steps."""
    lr0: float = setting(0.01, LR)
    """Learning rate after warm-up (SGD 0.01, Adam 0.001)."""
    lrf: float = setting(0.01, real(0, 1, above=True))
    """Learning rate of the last epoch as a share of lr0."""
    momentum: float = setting(0.937, MOMENTUM)
    """SGD's momentum, or Adam's beta1."""
    weight_decay: float = setting(0.0005, WEIGHT_DECAY)
    """L2 penalty of weights (not of biases and BatchNorm) at a global batch of nbs."""
    warmup_epochs: float = setting(3.0, real(0))
    """Epochs (fractions allowed) over which learning rate, momentum and accumulation rise."""
    warmup_momentum: float = setting(0.8, real(0, 1, below=True))
    """Momentum at the first step."""
    warmup_bias_lr: float = setting(0.1, real(0, 1))
    """Learning rate of biases at the first step."""
    box: float = setting(7.5, real(0))
    """Weight of the box loss (CIoU)."""
    cls: float = setting(0.5, real(0))
    """Weight of the class loss."""
    cls_pw: float = setting(0.0, real(0, 1))
    """Classes are weighted by inverse frequency to this power; 0: all the same."""
    dfl: float = setting(1.5, real(0))
    """Weight of the distribution focal loss."""
    nbs: int = setting(64, whole(1))
    """Nominal batch: gradients accumulate to about this many images per step, and weight_decay
    refers to it."""
    hsv_h: float = setting(0.015, real(0, 1))
    """Hue jitter, as a share of the circle."""
    hsv_s: float = setting(0.7, real(0, 1))
    """Saturation jitter, as a share."""
    hsv_v: float = setting(0.4, real(0, 1))
    """Brightness jitter, as a share."""
    degrees: float = setting(0.0, real(0, 360))
    """Largest rotation either way, in degrees."""
    translate: float = setting(0.1, real(0, 1))
    """Largest shift either way, as a share of the image."""
    scale: float | tuple[float, float] = setting(0.5, _SCALE)
    """Largest zoom either way as a share, or the pair of factors that bound it."""
    shear: float = setting(0.0, real(0, 90, below=True))
    """Largest shear either way, in degrees."""
    perspective: float = setting(0.0, real(0, 1))
    """Perspective; useful values are up to 0.001."""
    flipud: float = setting(0.0, real(0, 1))
    """Probability of an upside-down flip."""
    fliplr: float = setting(0.5, real(0, 1))
    """Probability of a left-right flip."""
    bgr: float = setting(0.0, real(0, 1))
    """Probability of swapped red and blue."""
    mosaic: float = setting(1.0, real(0, 1))
    """Probability of a mosaic of four images."""
    mixup: float = setting(0.0, real(0, 1))
    """Probability of blending two images."""
    cutmix: float = setting(0.0, real(0, 1))
    """Probability of pasting a piece of another image."""
    copy_paste: float = setting(0.0, real(0, 1))
    """Probability of pasting objects; works only where labels are polygons."""
    copy_paste_mode: str = setting("flip", one_of("flip", "mixup"))
    """Whether pasted objects come from the flipped image or from another one."""
    close_mosaic: int = setting(10, whole(0))
    """Number of last epochs without mosaic, mixup, cutmix and copy_paste; 0: none."""
    multi_scale: float = setting(0.0, _share())
    """Each step draws its image size within this share of imgsz either way; 0: fixed size."""
    cos_lr: bool = setting(False, flag())
    """Whether the learning rate decays by a cosine instead of linearly."""
    patience: int = setting(100, whole(0))
    """Training ends after this many epochs without a better fitness; 0: never."""
    freeze: int | tuple[int | str, ...] | None = setting(None, _FREEZE)
    """Layers that are not trained: the first N, or a list of layer numbers and module names."""
    pretrained: bool | str = setting(True, either(flag(), text()))
    """false: --weights is ignored; a path: the same as --weights."""
    cls_remap: bool = setting(True, flag())
    """Whether rows of a pretrained class head move to the classes of the same name."""
    single_cls: bool = setting(False, flag())
    """Whether all classes count as one."""
    classes: tuple[int, ...] | None = setting(None, _CLASSES)
    """Only boxes of these class ids are used; a single number is a list of one."""
    fraction: float | int = setting(1.0, _FRACTION)
    """Share of the training images to use; above 1: their number."""
    cache: bool | str = setting(False, _cache())
    """'ram' (or true) keeps decoded images in memory."""
    seed: int = setting(0, whole(0, 2**32 - 1))
    """Decides initial weights, the order of samples, and the augmentation of each sample."""
    deterministic: bool = setting(True, flag())
    """Whether to use deterministic kernels where they exist."""
    save_period: int = setting(-1, whole(-1))
    """Epochs between the epochN.pt files that are kept; below 1: none."""
    val: bool = setting(True, flag())
    """Whether to evaluate after every epoch."""
    plots: bool = setting(True, flag())
    """Whether to draw the pictures of a run."""
    conf: float | None = setting(None, optional(real(0, 1)))
    """Lowest confidence that counts in evaluation; empty: 0.001."""
    iou: float = setting(0.7, real(0, 1))
    """Overlap above which non-maximum suppression drops the weaker box."""
    max_det: int = setting(300, whole(1))
    """Largest number of boxes per image in evaluation."""
    agnostic_nms: bool = setting(False, flag())
    """Whether non-maximum suppression works across classes."""
    channels_last: bool | None = setting(None, optional(flag()))
    """Channels-last memory layout; empty: on."""
    ema_decay: float = setting(0.9999, real(0, 1, below=True))
    """Decay per step of the averaged weights, which are saved. A constant in ultralytics."""
    ema_tau: float = setting(2000.0, real(0, above=True))
    """Steps over which that decay rises. A constant in ultralytics."""
    sync_bn: bool = setting(False, flag())
    """Whether BatchNorm is synchronised over all data-parallel ranks. Not in ultralytics."""
    precise_bn: int = setting(1024, whole(0))
    """Number of training images from which best.pt's BatchNorm statistics are recomputed at the
    end; 0: they are kept. Not in ultralytics."""
    mosaic_partners: str = setting("auto", one_of("auto", "all", "block"))
    """Whether the images that a sample is mixed with come from the whole set, or from its block of
    neighbours in the epoch, which are decoded once for all of them; auto: from the whole set unless
    it is too large for loaders to keep it decoded. Not in ultralytics."""

    def as_ultralytics(self) -> dict[str, Any]:
        """Overrides for ultralytics' `get_cfg`: only its own keys, with lists instead of tuples."""
        known = (field.name for field in fields(self) if field.name not in OWN)
        return {name: _plain(getattr(self, name)) for name in known}

    def as_dict(self) -> dict[str, Any]:
        """Every hyper-parameter, ready for JSON."""
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}


OWN = ("ema_decay", "ema_tau", "sync_bn", "precise_bn", "mosaic_partners")
"""Hyper-parameters that ultralytics does not have."""

RULES: Mapping[str, Rule] = MappingProxyType(
    {field.name: field.metadata["rule"] for field in fields(Hyper)}
)
"""The rule of each hyper-parameter."""


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class Given(NamedTuple):
    """One setting as a user gave it."""

    key: str
    value: Any
    where: str
    """Source and key, as shown to the user: "hyp.yaml line 3: lr0", "--set lr0", "--seed"."""


class HyperRead(NamedTuple):
    """Hyper-parameters, where each was given, and flags found in the hyp file."""

    hyper: Hyper
    flags: dict[str, Any]
    """Flags (data, model, epochs, imgsz, batch_size, workers) that the hyp file contains."""
    commanded: dict[str, str]
    """Hyper-parameters given on the command line -> where ("--set lr0")."""
    filed: dict[str, str]
    """Hyper-parameters given in the hyp file -> where ("hyp.yaml line 3: lr0")."""
    notes: tuple[str, ...] = ()
    """One line for each setting of the file that has no effect."""


def read_hyper(
    hyp_file: Path | None, sets: Sequence[str], faults: Faults, flags: Iterable[Given] = ()
) -> HyperRead:
    """Read hyper-parameters: a hyp file overrides the defaults, the command line both.

    Args:
        hyp_file: yaml of `key: value` lines; None: there is none.
        sets: the argument of each `--set`, as "key=value".
        faults: collects every unknown key, wrong type and value out of range.
        flags: hyper-parameters that were given by their own flag, such as --seed.

    Returns:
        the hyper-parameters; those with a fault have their default.
    """
    # Keys of the original yolov5 that YOLOv5u lacks show where a file comes from. Some of its other
    # keys share a name with YOLOv5u's but not the meaning: such values would train silently with
    # wrong gains.
    from_file = [] if hyp_file is None else _read_hyp_file(hyp_file, faults)
    original = {given.key for given in from_file} & {
        "anchor_t",
        "obj",
        "obj_pw",
        "iou_t",
        "fl_gamma",
    }
    flag_values: dict[str, Any] = {}
    file_values: dict[str, Any] = {}
    filed: dict[str, str] = {}
    notes: list[str] = []
    for given in from_file:
        if original and given.key in YOLOV5_GAINS:
            faults.add(
                f"{given.where}: this file belongs to the original yolov5 (it contains "
                f"{', '.join(sorted(original))}), where {given.key} has another meaning; remove "
                f"it, or use YOLOv5u's (default {getattr(Hyper(), given.key)})"
            )
        elif given.key in FLAGS_IN_FILE and given.value is not None:
            flag_values[FLAGS_IN_FILE[given.key]] = given.value
        elif given.key in NOT_USED:
            if given.value not in (None, False) or given.key == "amp":
                notes.append(
                    f"{given.where} is {shown(given.value)}, which has no effect: "
                    f"{NOT_USED[given.key]}"
                )
        elif not _repeats_a_default(given):
            file_values |= _take(given, faults)
            filed[given.key] = given.where
    line_values, commanded = _command_line([*_parse_sets(sets, faults), *flags], faults)
    return HyperRead(
        Hyper(**{**file_values, **line_values}), flag_values, commanded, filed, tuple(notes)
    )


def _command_line(given: Iterable[Given], faults: Faults) -> tuple[dict[str, Any], dict[str, str]]:
    """Values and sources of the command line's settings; a key with two values is a fault."""
    values: dict[str, Any] = {}
    commanded: dict[str, str] = {}
    for one in given:
        if one.key in REFUSED and _repeats_a_default(one):
            # As in a hyp file: ultralytics' default of an unsupported setting changes nothing.
            continue
        taken = _take(one, faults)
        if one.key in values and taken and taken[one.key] != values[one.key]:
            first = f"to {shown(_plain(values[one.key]))} by {commanded[one.key]}"
            faults.add(
                f"{one.key} is set twice: {first} and to {shown(_plain(taken[one.key]))} by "
                f"{one.where}; keep one"
            )
        values |= taken
        commanded[one.key] = one.where
    return values, commanded


def _take(given: Given, faults: Faults) -> dict[str, Any]:
    """The setting with its value in the right type; empty, and a fault, if not permitted."""
    key, value, where = given
    if key in RULES:
        if key == "optimizer" and (why := why_untrained(value)):
            faults.add(f"{where} is {shown(value)}: {why}")
            return {}
        if key == "cache" and value == "disk":
            faults.add(
                f"{where} is 'disk', which would write .npy files beside the images; use ram"
            )
            return {}
        good, parsed = check(RULES[key], value, where, faults)
        return {key: parsed} if good else {}
    if key in REFUSED or key in YOLOV5:
        faults.add(f"{where} is not supported: {YOLOV5[key] if key in YOLOV5 else REFUSED[key][1]}")
    elif key in FLAGS:
        faults.add(f"{where} is not a hyper-parameter: use {FLAGS[key]}")
    else:
        hint = nearest(key, [*RULES, *REFUSED])
        faults.add(f"{where} is not a hyper-parameter{hint}; docs/configuration.md lists them")
    return {}


def _repeats_a_default(given: Given) -> bool:
    """Whether a setting changes nothing: an unsupported one at its default, or an empty flag."""
    defaults = EARLIER.get(given.key, ())
    if given.key in REFUSED and REFUSED[given.key][0] is not ALWAYS:
        defaults = (REFUSED[given.key][0], *defaults)
    if any(_equal(given.value, default) for default in defaults):
        return True
    return given.key in FLAGS and (given.value is None or given.value is False)


def _equal(value: Any, default: Any) -> bool:
    """Equality that tells false from 0, unlike Python's; 0 and 0.0 are equal."""
    return isinstance(value, bool) == isinstance(default, bool) and value == default


def _parse_sets(sets: Sequence[str], faults: Faults) -> list[Given]:
    given = []
    for words in sets:
        key, equals, value = words.partition("=")
        key = key.strip().replace("-", "_")
        if not equals or not key:
            faults.add(f"--set {words}: write it as --set key=value, for example --set lr0=0.01")
            continue
        try:
            given.append(Given(key, _typed(value), f"--set {key}"))
        except NotYaml as error:
            start = words if len(words) <= 60 else f"{words[:57]}..."
            faults.add(f"--set {start}: cannot parse the value; write lists as [1, 2] ({error})")
    return given


def _typed(words: str) -> Any:
    """Parse a value in YAML's spelling or ultralytics' own (None; 0,2 for a list of two).

    Raises:
        NotYaml: the value has neither spelling.
    """
    if words.strip().lower() == "none":
        return None
    value = parse_yaml(words)
    # YAML reads 0,2 as text; ultralytics reads a list, for example of classes.
    return parse_yaml(f"[{words}]") if isinstance(value, str) and "," in value else value


def _read_hyp_file(path: Path, faults: Faults) -> list[Given]:
    """The hyp file's settings, each with its line; none, and a fault, if it cannot be read."""
    try:
        # utf-8-sig drops the byte order mark that Windows editors write.
        entries = parse_entries(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        faults.add(
            f"--hyp {path}: "
            f"{'no such file' if isinstance(error, FileNotFoundError) else error.strerror}"
        )
        return []
    except UnicodeDecodeError as error:
        faults.add(f"--hyp {path}: not UTF-8 text: {error}")
        return []
    except NotYaml as error:
        faults.add(
            f"--hyp {path}{f' line {error.line}' if error.line else ''}: not valid yaml: {error}"
        )
        return []
    if entries is None:
        faults.add(f"--hyp {path}: it must contain `key: value` lines")
        return []
    lines: dict[str, int] = {}
    for key, _, line in entries:
        if key in lines:
            faults.add(f"{path.name} line {line}: {key} is already on line {lines[key]}; keep one")
        lines.setdefault(key, line)
    return [Given(key, value, f"{path.name} line {line}: {key}") for key, value, line in entries]
