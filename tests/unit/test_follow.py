"""A run is followed from its present start on, in whole lines, each once."""

from __future__ import annotations

import json
from pathlib import Path

from yolods.api.follow import Follower
from yolods.telemetry.sinks.feed import FEED_FILE


def test_lines_are_handed_on_once_from_the_present_start(tmp_path: Path) -> None:
    told, folder, heard = tmp_path / "told", tmp_path / "exp", []
    follower = Follower(told, lambda place, line: heard.append((place, line["n"])))
    follower.poll()
    assert follower.folder is None
    told.write_text(json.dumps([str(folder), "b"]))
    follower.poll()
    assert follower.folder == folder and heard == [], "no file yet"
    folder.mkdir()
    lines = [
        {"kind": "start", "start": "a", "n": 0},
        {"kind": "epoch", "n": 1},
        {"kind": "start", "start": "b", "n": 2},
        {"kind": "epoch", "n": 3},
    ]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    file = folder / FEED_FILE
    file.write_text(text[:-5])
    follower.poll()
    assert heard == [(folder, 2)]
    file.write_text(text)
    follower.poll()
    follower.poll()
    assert heard == [(folder, 2), (folder, 3)]
