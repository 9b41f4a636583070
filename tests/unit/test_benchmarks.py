"""benchmarks: the command line, the order of runs, the arithmetic, the record, and what the drivers
hold on to."""

import inspect
import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import cases, mutants, report, throughput
from benchmarks.observer import Seen, Stopwatch, Task, Watch, per_image

ROOT = Path(__file__).resolve().parents[2]


def settings(tmp_path):
    return cases.Settings(tmp_path / "d.yaml", 192, "yolov5n", 320, 16, 1, tmp_path)


def seen(rate, first=3.0, busy=1.0, epochs=3):
    """A run whose first epoch, which does not count, was ten times slower."""
    counted = [{"seconds": 10.0, "cpu_seconds": 10.0 * busy, "images": 10 * rate}] * (epochs - 1)
    return Seen(first, [{"seconds": 100.0, "cpu_seconds": 10.0, "images": 10 * rate}, *counted])


def test_help_works_as_a_script_from_any_folder(run_process, tmp_path):
    done = run_process(
        [sys.executable, ROOT / "benchmarks" / "throughput.py", "--help"], cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "--map-seeds" in done.stdout and "two-ranks" in done.stdout


def test_the_text_of_every_mutant_stands_once_in_the_package():
    code = [file.read_text(encoding="utf-8") for file in sorted((ROOT / "yolods").rglob("*.py"))]
    found = {each.name: sum(text.count(each.before) for text in code) for each in mutants.MUTANTS}
    assert {name: count for name, count in found.items() if count != 1} == {}


def test_defaults_and_cores():
    options = throughput.parser().parse_args(["--cores", "2,5"])
    assert options.cores == [2, 5]
    assert (options.data, options.model, options.imgsz, options.threads, options.rounds) == (
        "demo",
        "yolov5n",
        320,
        1,
        3,
    )
    assert cases.REFERENCE not in options.cases and set(options.cases) | {cases.REFERENCE} == set(
        cases.CASES
    )


@pytest.mark.parametrize(
    "words", [["--epochs", "1"], ["--cases", "ultralytics"], ["--record", "no/such/folder/x.md"]]
)
def test_what_cannot_be_measured_is_refused(words, capsys):
    with pytest.raises(SystemExit) as stopped:
        throughput.main(words)
    assert stopped.value.code == 2
    assert words[0] in capsys.readouterr().err


def test_ultralytics_runs_before_each_case_that_is_compared_with_it():
    assert [case.key for case in cases.plan(["bf16", "fp32", "two-ranks"], cores=2, threads=1)] == [
        *("ultralytics", "fp32", "ultralytics", "bf16", "two-ranks")
    ]


def test_what_needs_more_cores_than_there_are_is_left_out():
    assert [
        case.key for case in cases.plan(["fp32", "two-ranks", "two-runs"], cores=3, threads=2)
    ] == [*("ultralytics", "fp32")]


@pytest.mark.parametrize("kind", ["rate", "profile", "map"])
def test_both_trainers_are_given_the_same(kind, tmp_path):
    hyper = cases.hyper(kind, 7, map_epochs=12)
    ours, environment = cases.command(
        cases.CASES["plain"], settings(tmp_path), epochs=3, imgsz=192, hyper=hyper, name="a"
    )
    theirs, other = cases.command(
        cases.CASES["ultralytics"], settings(tmp_path), epochs=3, imgsz=192, hyper=hyper, name="a"
    )
    assert environment == other and environment["OMP_NUM_THREADS"] == "1"
    overrides = json.loads(theirs[-1])
    given = {
        key: json.loads(value) for key, value in (word.split("=") for word in ours if "=" in word)
    }
    assert given == hyper and hyper.items() <= overrides.items()
    flags = dict(pairwise(ours))
    assert (flags["--epochs"], flags["--imgsz"], flags["--batch-size"]) == ("3", "192", "16")
    assert (overrides["epochs"], overrides["imgsz"], overrides["batch"]) == (3, 192, 16)


def test_hyper_parameters_are_ones_that_yolods_takes():
    from yolods.config.hyper.hyperparameters import read_hyper
    from yolods.errors import Faults

    for kind in ("rate", "profile", "map"):
        faults = Faults()
        read_hyper(
            None,
            [f"{key}={json.dumps(value)}" for key, value in cases.hyper(kind, 1).items()],
            faults,
        )
        assert not faults


def test_two_ranks_keep_the_images_of_a_rank(tmp_path):
    words, _ = cases.command(
        cases.CASES["two-ranks"],
        settings(tmp_path),
        epochs=3,
        imgsz=320,
        hyper=cases.hyper("rate", 0),
        name="a",
    )
    flags = dict(pairwise(words))
    assert (flags["--batch-size"], flags["--num_gpus"], words[2]) == ("32", "2", "launch")
    assert Path(flags["--deepspeed_config"]).is_file()


def test_the_first_epoch_does_not_count():
    one = report.result("fp32", 0, [seen(20, first=4.0, busy=0.5)], threads=1)
    assert (one.rate, one.first_step, one.busy) == (20, 4.0, 0.5)
    with pytest.raises(ValueError, match="two epochs"):
        report.result("fp32", 0, [seen(20, epochs=1)], threads=1)


def test_ratios_are_taken_with_the_run_just_before():
    results = [
        report.result(key, number, [seen(rate)], 1)
        for key, number, rate in [
            *(("ultralytics", 0, 10), ("fp32", 0, 13), ("ultralytics", 0, 11), ("bf16", 0, 22)),
            *(("ultralytics", 1, 20), ("fp32", 1, 24), ("ultralytics", 1, 10), ("bf16", 1, 21)),
        ]
    ]
    assert report.ratios(results, "fp32") == pytest.approx([1.3, 1.2])
    assert report.ratios(results, "bf16") == pytest.approx([2.0, 2.1])


def test_two_ranks_are_compared_within_a_round_by_both_definitions():
    results = [
        report.result("fp32", 0, [seen(10)], 1),
        report.result("two-ranks", 0, [seen(19)], 1),
        report.result("two-runs", 0, [seen(9), seen(10)], 1),
        report.result("two-ranks", 1, [seen(30)], 1),
    ]
    assert report.scaling(results, "fp32") == pytest.approx([0.95])
    assert report.scaling(results, "two-runs") == pytest.approx([1.0])
    text = "\n".join(report.scaling_lines(results))
    assert "0.950" in text and "1.000" in text


def test_the_table_has_a_row_a_case_and_marks_disturbed_runs():
    results = [
        report.result("ultralytics", 0, [seen(10)], 1),
        report.result("fp32", 0, [seen(12.5, busy=0.6)], 1),
        report.result("two-ranks", 0, [seen(25, busy=0.6)], 1),
    ]
    rows = report.rate_table(results)
    assert len(rows) == 5
    assert "12.50 (12.50..12.50) | 1.250 (1.250..1.250)" in rows[3] and "60% (!)" in rows[3]
    assert "(!)" not in rows[2] and "(!)" not in rows[4]
    assert "1 of 3 runs" in report.doubts(results)[0]
    assert report.doubts(results[:1]) == []


def test_spread():
    assert report.Spread.of([3, 1, 2]).text(1) == "2.0 (1.0..3.0)"


def test_map_table_puts_means_beside_the_spread_of_seeds():
    def scores(*values):
        return [{"metrics/mAP50(B)": value, "metrics/mAP50-95(B)": value / 2} for value in values]

    text = "\n".join(
        report.map_table({"ultralytics": scores(0.8, 0.9), "bf16": scores(0.82, 0.86)})
    )
    assert (
        "0.800 0.900 | 0.850" in text
        and "-0.010 from ultralytics', whose seeds lie 0.100 apart" in text
    )


def test_profile_tables():
    split = {"forward": 3.0, "backward": 6.0, "rest": 1.0, "total": 10.0}
    rows = report.split_table({"ultralytics": split, "fp32": {**split, "EMA": 0.5}})
    assert rows[1].count("---:") == 2
    assert any(row.startswith("| forward | 3.00 (30%) | 3.00 (30%)") for row in rows)
    assert any(row.startswith("| EMA |  | 0.50 (5%)") for row in rows)
    assert (
        "12.5%"
        in report.operator_table([{"name": "aten::mm", "calls": 3.0, "ms": 1.0, "share": 0.125}])[
            -1
        ]
    )


def test_nested_parts_count_for_the_innermost():
    now = [0.0]
    watch = Stopwatch(lambda: now[0])

    def inner():
        now[0] += 2

    inner = watch.wrapped(inner, "inner")

    def items():
        now[0] += 5
        yield 1

    now[0] += 1
    with watch.part("outer"):
        now[0] += 3
        inner()
        now[0] += 4
    assert list(watch.timed(items(), "data")) == [1]
    watch.pause()
    now[0] += 100
    inner()
    watch.resume()
    watch.lap()
    assert dict(watch.totals) == {"rest": 1, "outer": 7, "inner": 2, "data": 5}


def test_milliseconds_an_image():
    assert per_image({"a": 1.0, "b": 0.5}, 100) == {"a": 10.0, "b": 5.0, "total": 15.0}


def test_a_watch_times_epochs_and_ends_the_process_after_the_last(tmp_path):
    task = Task(str(tmp_path / "seen.json"), started=0.0, kind="rate", epochs=2, threads=1)
    assert Task(**json.loads(task.environment()["YOLODS_BENCHMARK"])) == task
    watch = Watch(task)
    watch.epoch_began()
    watch.step_ended(16)
    watch.step_ended(16)
    watch.epoch_ended()
    watch.epoch_began()
    watch.step_ended(8)
    with pytest.raises(SystemExit) as stopped:
        watch.epoch_ended()
    assert stopped.value.code == 0
    found = Seen.read(tmp_path / "seen.json")
    assert [epoch["images"] for epoch in found.epochs] == [32, 8]
    assert found.first_step > 0 and found.epochs[0]["seconds"] > 0


def test_a_record_is_on_disk_after_every_section(tmp_path):
    record = throughput.Record(tmp_path / "r.md")
    record.add(["# One", "", ""])
    assert (tmp_path / "r.md").read_text() == "# One\n"
    record.add(["two"])
    assert (tmp_path / "r.md").read_text() == "# One\n\ntwo\n"


def test_the_copy_holds_every_image_and_label_and_nothing_else(tmp_path):
    from benchmarks.copies import copy_of
    from tests.tiny import make_dataset
    from yolods.data.images.listing import list_images
    from yolods.data.spec import read_spec

    source = make_dataset(tmp_path / "source")
    before = sorted(path for path in (tmp_path / "source").rglob("*"))
    file, images = copy_of(str(source), tmp_path / "work")
    assert images == 6
    ours, copied = read_spec(source), read_spec(file)
    for split in ("train", "val"):
        pairs = zip(
            list_images(ours.sources(split)), list_images(copied.sources(split)), strict=True
        )
        for original, copy in pairs:
            assert Path(original).read_bytes() == Path(copy).read_bytes()
            labels = [
                Path(name.replace("/images/", "/labels/")).with_suffix(".txt")
                for name in (original, copy)
            ]
            assert labels[0].read_text() == labels[1].read_text()
    assert sorted(path for path in (tmp_path / "source").rglob("*")) == before


def test_the_places_that_the_drivers_watch_are_there():
    """A driver finds them by name in a running trainer, where a change would be noticed minutes
    into a measurement."""
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.nn.tasks import DetectionModel

    from yolods.commands import launching, running
    from yolods.engine.zero_engine import ZeroEngine
    from yolods.launch import command
    from yolods.model.inputs import InputFormat
    from yolods.optim.ema import ShardedEma
    from yolods.telemetry import Telemetry
    from yolods.training.batches import TrainBatches
    from yolods.training.loop import Run

    assert callable(running.prepare_libraries) and callable(command.launcher_command)
    assert "launcher_command" in inspect.getsource(launching.launch)
    for owner, names in (
        (Run, ("fit",)),
        (TrainBatches, ("read",)),
        (Telemetry, ("epoch_begin", "step", "finish")),
        (ShardedEma, ("update",)),
        (InputFormat, ("images",)),
        (DetectionTrainer, ("preprocess_batch", "optimizer_step", "add_callback")),
        (DetectionModel, ("predict", "loss")),
    ):
        assert all(callable(getattr(owner, name)) for name in names), owner
    fields = "".join(inspect.getsource(kind) for kind in ZeroEngine.__mro__ if kind is not object)
    assert all(f"self.{name}" in fields for name in ("deepspeed", "ema", "_loss", "inputs"))
