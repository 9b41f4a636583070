"""Builds a RunConfig from the command line; reports all faults at once, before anything starts."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from yolods.config.deepspeed.config import DeepSpeedConfig, read_deepspeed
from yolods.config.flags import hyper_flags
from yolods.config.hyper.hyperparameters import Hyper, HyperRead, read_hyper
from yolods.config.hyper.unused import unused
from yolods.config.image_size import single_value_fault, size_fault
from yolods.config.loggers import read_loggers
from yolods.config.names.data_name import shipped_yaml
from yolods.config.names.model_name import name_of_weights, parse_name
from yolods.config.names.recipes import find_json
from yolods.config.optimizers.json_block import merge_optimizer
from yolods.config.resume import check_unchanged, find_run, passed_over, relaid
from yolods.config.run import (
    CONFIG_FILE,
    DEFAULT_MODEL,
    DEMO,
    NUMBERS,
    TRACE_STEPS,
    RunConfig,
    next_run_dir,
)
from yolods.errors import Faults, UserError
from yolods.parsing.rules import check

WRITTEN = {
    "epochs": "--epochs",
    "imgsz": "--imgsz",
    "batch_size": "--batch-size",
    "workers": "--workers",
    "trace": "--trace",
}
"""Keys of `NUMBERS`, and trace -> their flags."""


_OF_ONE_START = ("--resume continues ", "--exist-ok is ignored", "--data: the run goes on ")
"""Beginnings of the notes about how a resume was asked for."""


def build_run_config(
    args: argparse.Namespace,
    *,
    world_size: int,
    device: str,
    environ: Mapping[str, str] | None = None,
    check_files: Callable[[RunConfig, Faults], None] | None = None,
) -> RunConfig:
    """Read flags, hyp file and DeepSpeed JSON.

    Args:
        args: the result of parsing the flags of `add_train_arguments`.
        world_size: number of all ranks; for a pipeline, replicas x stages.
        device: "cpu" or "cuda".
        environ: environment variables; DS_ACCELERATOR must agree with `device`.
        check_files: adds the faults of data, model and weights files, so that they are reported
            together with those of the flags. The configuration that it gets has defaults in place
            of faulty flags.

    Raises:
        UserError: one line per fault.
    """
    faults = Faults()
    for fault in getattr(args, "faults", ()):  # found while parsing the command line
        faults.add(fault)
    _check_accelerator(device, environ or {}, faults)
    # A UserError that ends the block joins the faults found so far, so that none of them is lost.
    made = None
    with faults.caught():
        made = (_fresh if getattr(args, "resume", None) is None else _resumed)(
            args, world_size, device, faults
        )
    if made is not None and check_files is not None:
        check_files(made, faults)
    faults.raise_if_any()
    assert made is not None  # it is None only after a fault, and then the line above raises
    return made


def _fresh(args: argparse.Namespace, world_size: int, device: str, faults: Faults) -> RunConfig:
    """The configuration of a new run; use it only if `faults` stays empty."""
    read = read_hyper(_path(args, "hyp"), args.set or [], faults, hyper_flags(args))
    numbers, sources = _numbers(args, read, faults)
    config = read_deepspeed(
        _layout(args, faults),
        batch_size=numbers.get("batch_size"),
        world_size=world_size,
        device=device,
        faults=faults,
        hyper=read.hyper,
        said_by=sources.get("batch_size", "--batch-size"),
    )
    hyper, notes = merge_optimizer(
        read,
        config.optimizer,
        "--deepspeed_config" if not config.path else config.path.name,
        faults,
    )
    asked = _with_file(args, read)
    data, weights = _data(asked, faults), _weights(asked, hyper, faults)
    model = _model(asked, weights, faults)
    imgsz = numbers.get("imgsz", RunConfig.imgsz)
    _check_sizes(imgsz, sources.get("imgsz", "--imgsz"), model, hyper, config, faults)
    project, name, exist_ok = read_folder(args, faults)
    loggers = read_loggers(getattr(args, "loggers", None), faults)
    # --exist-ok moves the folder's old contents before the weights are read.
    if (
        exist_ok
        and weights is not None
        and weights.parent == (project / name / "weights").absolute()
    ):
        faults.add(
            f"--weights {weights}: --exist-ok moves the contents of {project / name}; copy the "
            "file to another folder, or choose another --name"
        )
    return RunConfig(
        data=data,
        model=model,
        weights=weights,
        epochs=numbers.get("epochs", RunConfig.epochs),
        imgsz=imgsz,
        workers=numbers.get("workers", default_workers(device)),
        check_data=bool(args.check_data),
        trace=numbers.get("trace", 0),
        project=project,
        name=name,
        exist_ok=exist_ok,
        loggers=loggers,
        hyper=hyper,
        deepspeed=config,
        device=device,
        run_dir=_chosen(args) or next_run_dir(project, name, exist_ok),
        given=_as_typed(args),
        notes=(*config.notes, *read.notes, *notes, *_unread(asked, hyper), *unused(read, hyper)),
        run=_start(args),
        start=_start(args),
    )


def default_workers(device: str) -> int:
    """Loader processes per rank: ultralytics' 8; 0 on a CPU, which has no cores to spare."""
    return RunConfig.workers if device == "cuda" else 0


def _check_accelerator(device: str, environ: Mapping[str, str], faults: Faults) -> None:
    named = environ.get("DS_ACCELERATOR", device)
    if named in ("cpu", "cuda") and named != device:
        faults.add(
            f"DS_ACCELERATOR is {named}, but this process computes on {device}; unset it, or set "
            f"it to {device}"
        )


def _path(args: argparse.Namespace, flag: str) -> Path | None:
    value = getattr(args, flag, None)
    return None if value is None else Path(value)


def _layout(args: argparse.Namespace, faults: Faults) -> Path | None:
    """The path of the DeepSpeed JSON that the user named."""
    named, before = getattr(args, "deepspeed_config", None), len(faults)
    found = None if named is None else find_json(named, faults)
    # After a fault, continue with the default, to find the remaining faults.
    return found if len(faults) == before else None


def _chosen(args: argparse.Namespace) -> Path | None:
    """The run's folder if the launcher chose it, relative to the working directory; else None."""
    folder = _path(args, "run_dir")
    if folder is None or not folder.is_relative_to(Path.cwd()):
        return folder
    return folder.relative_to(Path.cwd())


def _start(args: argparse.Namespace) -> str:
    """The identity that our launcher gave to this start; "" without our launcher."""
    return getattr(args, "start_id", None) or ""


def _as_typed(args: argparse.Namespace) -> tuple[tuple[str, Any], ...]:
    hidden = ("local_rank", "command", "func", "run_dir", "start_id", "tell")
    typed = {
        key: value for key, value in vars(args).items() if value is not None and key not in hidden
    }
    return tuple(
        (key, value) for key, value in typed.items() if isinstance(value, str | int | float | list)
    )


def _numbers(
    args: argparse.Namespace, read: HyperRead, faults: Faults
) -> tuple[dict[str, int], dict[str, str]]:
    """The given values of epochs, imgsz, batch_size, workers and trace, and their sources; a flag
    overrides the hyp file."""
    numbers: dict[str, int] = {}
    sources: dict[str, str] = {}
    # The hyp file's numbers have not been checked yet, and argparse checks only that a flag is an
    # integer.
    for key, rule in {**NUMBERS, "trace": TRACE_STEPS}.items():
        value, source = getattr(args, key, None), WRITTEN[key]
        if value is None and key in read.flags:
            value, source = read.flags[key], f"--hyp {args.hyp}: {key}"
        if value is None:
            continue
        good, parsed = check(rule, value, source, faults)
        if good:
            numbers[key], sources[key] = parsed, source
    return numbers, sources


def _with_file(args: argparse.Namespace, read: HyperRead) -> argparse.Namespace:
    """The flags, with data and model from the hyp file where not given. As in ultralytics, its
    model may be a .pt."""
    merged = argparse.Namespace(**vars(args))
    if args.data is None and "data" in read.flags:
        merged.data = str(read.flags["data"])
    model = read.flags.get("model")
    if model is not None and args.model is None and getattr(args, "weights", None) is None:
        setattr(merged, "weights" if str(model).endswith(".pt") else "model", str(model))
    return merged


def _data(args: argparse.Namespace, faults: Faults) -> Path:
    if args.data is None:
        faults.add("--data is required: a data yaml, or --data demo for the embedded data set")
        return Path(DEMO)
    if args.data == DEMO:
        return Path(DEMO)
    path = Path(args.data)
    if not path.exists() and (shipped := shipped_yaml(path)):
        return shipped
    if not path.is_file():
        faults.add(
            f"--data {args.data}: "
            f"{'this is a folder; name the yaml in it' if path.is_dir() else 'no such file'}"
        )
    return path.absolute()


def _weights(args: argparse.Namespace, hyper: Hyper, faults: Faults) -> Path | None:
    given = getattr(args, "weights", None)
    if isinstance(hyper.pretrained, str):
        if given is not None and given != hyper.pretrained:
            faults.add(
                f"weights are set twice: --weights {given} and pretrained {hyper.pretrained}; keep "
                "one"
            )
        given = given or hyper.pretrained
    if given in (None, ""):
        return None
    if not Path(given).is_file():
        faults.add(
            f"--weights {given}: no such file (weights are never downloaded; fetch the file first)"
        )
    return None if hyper.pretrained is False else Path(given).absolute()


def _unread(asked: argparse.Namespace, hyper: Hyper) -> tuple[str, ...]:
    """A line if the user named weights that are ignored."""
    given = getattr(asked, "weights", None)
    return (
        (f"--weights {given} is ignored: pretrained is false",)
        if given and hyper.pretrained is False
        else ()
    )


def _model(args: argparse.Namespace, weights: Path | None, faults: Faults) -> str:
    """The architecture: from --model, or from the weights' file name, or the default."""
    if args.model is not None:
        if args.model.endswith((".yaml", ".yml")) and Path(args.model).is_file():
            return str(Path(args.model).absolute())
        return args.model
    if weights is None:
        return DEFAULT_MODEL
    if found := name_of_weights(weights):
        return found
    faults.add(
        f"--model is required: the name of --weights {weights.name} does not determine the "
        "architecture"
    )
    return DEFAULT_MODEL


def _check_sizes(
    imgsz: int, source: str, model: str, hyper: Hyper, config: DeepSpeedConfig, faults: Faults
) -> None:
    """Check the image size against the model's stride and the batch.

    A user's yaml is not built here, so only a multiple of 32 is checked; its strides are checked
    when it is built.
    """
    try:
        name = parse_name(model)
    except UserError as error:
        faults.add(str(error))
        return
    if fault := size_fault(imgsz, name.stride, Path(model).name, source):
        faults.add(fault)
    elif name.yaml is None:
        ranks = config.dp_size if hyper.sync_bn else 1
        fault = single_value_fault(
            imgsz, name.stride, config.micro_batch, multi_scale=hyper.multi_scale, ranks=ranks
        )
        if fault:
            faults.add(fault)


def read_folder(
    args: argparse.Namespace, faults: Faults, *, default: str = "exp"
) -> tuple[Path, str, bool]:
    """--project, --name (`default` if not given) and --exist-ok; faults are added for each."""
    name = default if args.name is None else args.name
    if name in ("", ".", "..") or "/" in name:
        faults.add(f"--name {name!r}: it must be a single folder name; use --project for the path")
    project = Path("runs" if args.project is None else args.project)
    for flag, value in (("--name", name), ("--project", str(project))):
        if fault := _not_utf8(value):
            faults.add(f"{flag} {fault}")
    if args.project == "":
        faults.add("--project is empty: name a folder, or omit the flag to use runs/")
    elif project.exists() and not project.is_dir():
        faults.add(f"--project {project}: this is a file; name a folder")
    return project, name, bool(args.exist_ok)


def _not_utf8(name: str) -> str:
    """A fault for a folder's name that is not UTF-8, which TensorBoard, results.csv or another host
    cannot write; else ""."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return f"{name!r}: not valid UTF-8; use another name"
    return ""


def _present_data(saved: RunConfig, args: argparse.Namespace, faults: Faults) -> Path:
    """The yaml with which a run goes on: its own, or that of --data. The same data may have been
    packed or moved; `resume_check` compares them."""
    kept = (None, DEMO, str(saved.data))
    return saved.data if args.data in kept or saved.is_demo else _data(args, faults)


def _resumed(
    args: argparse.Namespace, world_size: int, device: str, faults: Faults
) -> RunConfig | None:
    """The saved configuration of a run, with epochs, workers and layout from the flags if given."""
    project = Path(args.project or "runs")
    run_dir = _chosen(args) or find_run(args.resume, project, CONFIG_FILE, faults)
    if run_dir is None:
        return None
    try:
        content = (run_dir / CONFIG_FILE).read_bytes()
    except OSError as error:
        faults.add(f"--resume: {run_dir / CONFIG_FILE} cannot be read: {error.strerror or error}")
        return None
    said = passed_over(run_dir, project, CONFIG_FILE) if args.resume is True else ()
    if args.exist_ok:
        said = (*said, f"--exist-ok is ignored: --resume continues in {run_dir} and moves nothing")
    saved = RunConfig.from_json(content, run_dir)
    read = read_hyper(_path(args, "hyp"), args.set or [], faults, hyper_flags(args))
    numbers, _ = _numbers(args, read, faults)
    asked, data = _with_file(args, read), _present_data(saved, args, faults)
    if data != saved.data:
        asked.data = None
        said = (*said, f"--data: the run goes on with {data} in place of {saved.data}")
    check_unchanged(saved, asked, read, numbers, faults)
    layout = _layout(args, faults)
    loggers = getattr(args, "loggers", None)
    config = saved.deepspeed
    if layout is not None or world_size != config.world_size or device != saved.device:
        config = relaid(saved, layout, world_size, device, faults)
    # Notes about the old JSON are replaced by those of the new one, and those about an earlier
    # start are over; the other notes of the run stay.
    kept = (
        note
        for note in saved.notes
        if note not in saved.deepspeed.notes and not note.startswith(_OF_ONE_START)
    )
    return replace(
        saved,
        data=data,
        deepspeed=config,
        device=device,
        epochs=numbers.get("epochs", saved.epochs),
        workers=numbers.get("workers", saved.workers),
        check_data=bool(args.check_data),
        trace=numbers.get("trace", 0),
        loggers=read_loggers(",".join(saved.loggers) if loggers is None else loggers, faults),
        given=_as_typed(args),
        notes=tuple(dict.fromkeys((*said, *config.notes, *kept, *read.notes))),
        start=_start(args),
    )
