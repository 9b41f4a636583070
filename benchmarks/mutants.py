"""Faults put into the code on purpose, one at a time, and whether the tests notice.

    python benchmarks/mutants.py --record benchmarks/mutants.md

Each fault is a text that stands once in `yolods/` and what takes its place. The tests that should
notice run on a copy of the tree that has the fault, and stop at the first failure; they ran on the
copy without faults before. Nothing is written outside the record and a temporary folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

# Started as a script, Python looks for modules in this folder, not in the clone that it belongs to.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.cases import ROOT
from benchmarks.hardware import describe

LIMIT_SECONDS = 420.0
"""For the tests of one fault; tests that hang under it have noticed it too."""

COPIED = ("yolods", "tests", "benchmarks", "docs", "ds_configs", "hostfiles")
"""Folders that tests read; of the files beside them all."""


@dataclass(frozen=True)
class Mutant:
    """One fault."""

    name: str
    """What is wrong, in a few words."""
    before: str
    """A text that stands once in `yolods/`."""
    after: str
    """What takes its place."""
    tests: tuple[str, ...]
    """Arguments of pytest: files by their names, and `-k` with its value."""


MUTANTS = (
    Mutant(
        "an all-reduce is dropped",
        "        dist.all_reduce(flat, group=group)\n",
        "",
        ("test_world.py",),
    ),
    Mutant(
        "the order of ranks on the grid is swapped",
        "return Coordinates(rank % stages, rank // stages)",
        "return Coordinates(rank // replicas, rank % replicas)",
        ("test_mesh.py",),
    ),
    Mutant(
        "gradients of a stage are counted once between hosts",
        "        2 * gradient_bytes[stage]\n",
        "        gradient_bytes[stage]\n",
        ("test_mesh.py",),
    ),
    Mutant(
        "torchrun's count of ranks on a host is taken for DeepSpeed's",
        'return LOCAL_SIZES[:1] if "CROSS_SIZE" in environ else LOCAL_SIZES',
        'return LOCAL_SIZES[1:] if "CROSS_SIZE" in environ else LOCAL_SIZES',
        ("test_rank_env.py",),
    ),
    Mutant(
        "adaptive clipping divides the wrong way round",
        "own = np.minimum(1.0, allowed / np.maximum(measured.norms, np.finfo(float).tiny))",
        "own = np.minimum(1.0, measured.norms / np.maximum(allowed, np.finfo(float).tiny))",
        ("test_policies.py",),
    ),
    Mutant(
        "a policy that learns takes in what was clipped",
        "self._remember(norm, norm * factor if learned else norm)",
        "self._remember(norm, norm * factor)",
        ("test_policies.py",),
    ),
    Mutant(
        "the loss scale falls to a quarter",
        "self.cur_scale = max(self.cur_scale / 2, self.rules.floor)",
        "self.cur_scale = max(self.cur_scale / 4, self.rules.floor)",
        ("test_loss_scale.py",),
    ),
    Mutant(
        "the loss scale doubles a step early",
        "(self.good_steps - 1) % self.rules.window == 0",
        "self.good_steps % self.rules.window == 0",
        ("test_loss_scale.py",),
    ),
    Mutant(
        "each rank decides by its own norms",
        "            dist.all_reduce(message)\n",
        "            pass\n",
        ("parity/test_clipping.py",),
    ),
    Mutant(
        "gradients are not unscaled where a shard is flat",
        "            flat.mul_(decision.factor)\n",
        "            pass\n",
        ("test_gradients.py",),
    ),
    Mutant(
        "a spike does not count until the run has patience left",
        "if self._bad_in_row < self._config.patience:",
        "if self._bad_in_row <= self._config.patience:",
        ("test_guard.py",),
    ),
    Mutant(
        "a bad image lowers the loss scale",
        'if not math.isfinite(grad_stats.total_loss):\n            return "forward", math.nan',
        'if not math.isfinite(grad_stats.total_loss):\n            return "overflow", math.nan',
        ("test_guard.py",),
    ),
    Mutant(
        "a file is renamed before it is on the disk",
        "            yield handle\n            os.fsync(handle)\n",
        "            yield handle\n",
        ("test_files.py",),
    ),
    Mutant(
        "a checkpoint is named before its folder is on the disk",
        "    os.replace(writing, target)\n    sync_folder(folder)\n",
        "    os.replace(writing, target)\n",
        ("test_store.py", "test_store_beside.py", "test_checkpoints.py"),
    ),
    Mutant(
        "a file's checksum is not compared",
        'if f"{crc:08x}" == expected.crc32',
        "if expected.crc32",
        ("test_checked_files.py",),
    ),
    Mutant(
        "another run's checkpoints are taken for its own",
        "    own = set(names_in(folder, run))\n",
        "    own = set(names_in(folder))\n",
        ("test_store.py",),
    ),
    Mutant(
        "a parameter's pieces are put together out of place",
        'for rank in range(1 if kind == "whole" else count):',
        'for rank in reversed(range(1 if kind == "whole" else count)):',
        ("test_shards.py",),
    ),
    Mutant(
        "the moving average rises with the square of tau",
        "share = 1 - self._decay * (1 - math.exp(-self.updates / self._tau))",
        "share = 1 - self._decay * (1 - math.exp(-self.updates / self._tau**2))",
        ("unit/test_ema.py",),
    ),
    Mutant(
        "training goes on with the moving average",
        "            self._swap()\n            raise\n        self._swap()\n",
        "            self._swap()\n            raise\n",
        ("unit/test_ema.py", "parity/test_ema.py"),
    ),
    Mutant(
        "a second partition of ZeRO-3 is not cut anew",
        "        optimizer.invalidate_secondary_tensor()\n",
        "",
        ("test_secondary.py",),
    ),
    Mutant(
        "a backward of 1F1B comes a slot late",
        "(2 * stages - 1 - stage if backward else stage)",
        "(2 * stages + 1 - stage if backward else stage)",
        ("test_one_f_one_b.py",),
    ),
    Mutant(
        "a stage is thought to hold one micro-batch more",
        "    return min(stages - stage, micro_batches)\n",
        "    return min(stages - stage + 1, micro_batches)\n",
        ("test_one_f_one_b.py",),
    ),
    Mutant(
        "Python and numpy draw the same stream",
        'np.random.seed(_legacy_seed(keyed_seed("numpy", *key)))',
        'np.random.seed(_legacy_seed(keyed_seed("python", *key)))',
        ("test_random_streams.py",),
    ),
    Mutant(
        "ranks share images of a batch",
        "return self.sample_ids(k * self.batch + dp_rank * micro, micro)",
        "return self.sample_ids(k * self.batch + dp_rank, micro)",
        ("test_sampler.py",),
    ),
    Mutant(
        "blocks begin anew with every epoch",
        "first = -(-start // self.block) * self.block + self.block",
        "first = start + self.block",
        ("test_sampler.py",),
    ),
    Mutant(
        "an image is its own partner",
        "others = [index for index in self._sample.block if index != self._sample.index]",
        "others = [*self._sample.block]",
        ("test_partners.py",),
    ),
    Mutant(
        "images of a block are forgotten with each sample",
        "            self._of_block = {i: old[i] for i in block if i in old}\n",
        "        self._of_block = {}\n",
        ("test_dataset.py",),
    ),
    Mutant(
        "a canvas keeps what the last sample has left",
        "canvas[each.top : each.bottom, each.left : each.right] = GREY",
        "canvas[0:0, 0:0] = GREY",
        ("test_warp.py",),
    ),
    Mutant(
        "a host that stands twice in a hostfile is taken",
        "        if host.name in hosts:\n",
        "        if False:\n",
        ("test_hostfile.py",),
    ),
    Mutant(
        "the rank that has come furthest is blamed",
        "            beat = min(late, key=_far)\n",
        "            beat = max(late, key=_far)\n",
        ("test_failure_detector.py",),
    ),
    Mutant(
        "a silent rank has ten times as long",
        "            if now - heard > limit:\n",
        "            if now - heard > 10 * limit:\n",
        ("test_failure_detector.py",),
    ),
    Mutant(
        "a launcher that a signal has ended says 0",
        "        return code if code >= 0 else 128 - code\n",
        "        return max(code, 0)\n",
        ("test_supervisor.py",),
    ),
    Mutant(
        "a run that another command has ended counts as this one's end",
        "mine = end is not None and (end.run, end.start) == (self._run, self._start_id)",
        "mine = end is not None",
        ("test_restart.py",),
    ),
    Mutant(
        "the loss is averaged over images",
        "        return items.sum() * images, items.detach()\n",
        "        return items.sum(), items.detach()\n",
        ("test_detection_loss.py",),
    ),
    Mutant(
        "the class loss wants all of a box's anchors for one class",
        "wanted.view(-1).scatter_(0, places, assigned.weight)",
        "wanted.view(-1).scatter_(0, places, assigned.weight.clamp(min=0.5))",
        ("test_detection_loss.py",),
    ),
    Mutant(
        "results.csv counts epochs from 0",
        '{"epoch": stats.epoch + 1, "time": stats.seconds}',
        '{"epoch": stats.epoch, "time": stats.seconds}',
        ("test_telemetry_results.py",),
    ),
    Mutant(
        "a row of an epoch that was lost stays in results.csv",
        "if 1 <= float(cells[0]) <= start_epoch]",
        "if 1 <= float(cells[0])]",
        ("test_telemetry_results.py",),
    ),
    Mutant(
        "patience is a step too long",
        "bool(patience) and waited >= patience and",
        "bool(patience) and waited > patience and",
        ("test_selection.py",),
    ),
    Mutant(
        "links meet when a step first needs them (gpu.md, 1)",
        "        _meet(neighbours, before=boundary < mesh.stage)\n",
        "        pass\n",
        ("test_rendezvous.py",),
    ),
    Mutant(
        "DeepSpeed's timer waits for the device (gpu.md, 2)",
        'return sound["timers"] if _given(sound) else {"throughput": {"enabled": False}}',
        'return sound["timers"] if _given(sound) else {"throughput": {"enabled": True}}',
        ("test_engines.py", "-k", "zero2 or zero1"),
    ),
    Mutant(
        "a request to stop is copied to the device (gpu.md, 3)",
        "sums.new_full((1,), float(stop))",
        "torch.tensor([float(stop)], device=sums.device)",
        ("test_engines.py", "-k", "zero2 or zero1"),
    ),
    Mutant(
        "sent tensors are held until the step ends (gpu.md, 6)",
        "        while len(self._under_way) > leave:\n",
        "        while not leave and self._under_way:\n",
        ("test_pipeline_memory.py",),
    ),
    Mutant(
        "a GPU is used that DeepSpeed was told to leave alone (gpu.md, 8)",
        '    if kind == "cpu":\n        return 0\n',
        "",
        ("test_detectors.py", "test_devices.py"),
    ),
    Mutant(
        "headers of messages go over the device (gpu.md, 12)",
        "            header = torch.empty(_HEADER, dtype=torch.int64)\n",
        "            header = torch.empty(_HEADER, dtype=torch.int64, device=self._device)\n",
        ("test_engines.py", "-k", "pipeline"),
    ),
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--only", metavar="TEXT", help="faults whose name has this text")
    made.add_argument(
        "--list", action="store_true", help="name the faults and their tests, and end"
    )
    made.add_argument("--record", type=Path, metavar="MD", help="write the table there")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Put in every fault in turn; returns 1 where one was not noticed."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parser().parse_args(words)
    chosen = [mutant for mutant in MUTANTS if not options.only or options.only in mutant.name]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name}: {' '.join(mutant.tests)}")
        return 0
    rows = []
    with copy_of_the_tree() as tree:
        sound = soundness(tree, chosen)
        for number, mutant in enumerate(chosen, 1):
            began = time.monotonic()
            found = verdict(tree, mutant) if mutant.tests in sound else "its tests fail without it"
            rows.append((mutant, found))
            print(
                f"{number}/{len(chosen)} {mutant.name}: {found} ({time.monotonic() - began:.0f} s)",
                flush=True,
            )
    if options.record is not None:
        options.record.write_text(page(rows, words), encoding="utf-8")
    missed = sum(not found.startswith("noticed") for _, found in rows)
    print(f"{len(rows) - missed} of {len(rows)} faults were noticed")
    return 1 if missed else 0


@contextmanager
def copy_of_the_tree() -> Iterator[Path]:
    """A copy of what tests need, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="yolods-mutants-") as made:
        tree = Path(made) / "tree"
        tree.mkdir()
        for name in COPIED:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        for file in ROOT.iterdir():
            if file.is_file():
                shutil.copy2(file, tree)
        yield tree


def soundness(tree: Path, chosen: Sequence[Mutant]) -> set[tuple[str, ...]]:
    """The tests that pass on the tree as it is."""
    passed = set()
    for tests in dict.fromkeys(mutant.tests for mutant in chosen):
        status, _ = run_tests(tree, tests)
        if status == 0:
            passed.add(tests)
        print(
            f"without a fault: {' '.join(tests)}: "
            f"{'passed' if status == 0 else f'status {status}'}",
            flush=True,
        )
    return passed


def verdict(tree: Path, mutant: Mutant) -> str:
    """Whether the fault was noticed, and by which test."""
    files = [
        file
        for file in sorted((tree / "yolods").rglob("*.py"))
        if mutant.before in file.read_text("utf-8")
    ]
    if len(files) != 1 or files[0].read_text("utf-8").count(mutant.before) != 1:
        return f"its text stands in {len(files)} files, or not once"
    original = files[0].read_text("utf-8")
    files[0].write_text(original.replace(mutant.before, mutant.after), "utf-8")
    try:
        status, printed = run_tests(tree, mutant.tests)
    finally:
        files[0].write_text(original, "utf-8")
    if status is None:
        return f"noticed: its tests did not end in {LIMIT_SECONDS:.0f} s"
    if status != 1:
        return "not noticed" if status == 0 else f"pytest ended with {status}"
    failed = next(
        (line for line in printed.splitlines() if line.startswith(("FAILED", "ERROR"))), "a test"
    )
    return f"noticed by {failed.split()[1].rpartition('::')[2] if ' ' in failed else failed}"


def run_tests(tree: Path, tests: Sequence[str]) -> tuple[int | None, str]:
    """pytest's exit status and what it printed; None: it did not end in time."""
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:cacheprovider",
        *arguments(tree, tests),
    ]
    environ = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    try:
        ended = subprocess.run(
            command,
            cwd=tree,
            env=environ,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, ""
    return ended.returncode, ended.stdout


def arguments(tree: Path, tests: Sequence[str]) -> list[str]:
    """pytest's arguments: the paths of files that are given by their names.

    Raises:
        ValueError: a name leads to no file, or to several.
    """
    found = []
    for word in tests:
        if not word.endswith(".py"):
            found.append(word)
            continue
        files = [
            file
            for file in (tree / "tests").rglob(Path(word).name)
            if str(file).endswith(f"/{word}")
        ]
        if not files:
            raise ValueError(f"{word} is no test file")
        found += [str(file.relative_to(tree)) for file in files]
    return found


def page(rows: Sequence[tuple[Mutant, str]], words: Sequence[str]) -> str:
    """The record."""
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    command = shlex.join(["python", "benchmarks/mutants.py", *words])
    head = [
        "# Faults put in on purpose",
        "",
        f"Run of {now}:",
        "",
        f"    {command}",
        "",
        *describe([0]),
        "",
    ]
    table = ["| fault | tests | verdict |", "| --- | --- | --- |"]
    table += [f"| {mutant.name} | {' '.join(mutant.tests)} | {found} |" for mutant, found in rows]
    return "\n".join([*head, *table]) + "\n"


if __name__ == "__main__":
    sys.exit(main())
