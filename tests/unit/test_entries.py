"""Videos that a data yaml names."""

from __future__ import annotations

import pytest

from yolods.data.video.entries import find_videos, videos_below
from yolods.errors import UserError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_files_and_folders_sorted_without_hidden_ones(tmp_path):
    late, early, below = (touch(tmp_path / name) for name in ("z.MP4", "v/a.mkv", "v/x/b.webm"))
    for name in ("v/.c.mp4", "v/.hidden/d.mp4", "v/notes.txt"):
        touch(tmp_path / name)
    assert find_videos([late, tmp_path / "v"]) == [early, below, late]


def test_a_link_keeps_its_spelling_and_a_circle_ends(tmp_path):
    real = touch(tmp_path / "real/a.mp4").parent
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/link").symlink_to(real)
    (real / "up").symlink_to(real)
    assert find_videos([tmp_path / "videos"]) == [tmp_path / "videos/link/a.mp4"]


def test_every_fault_at_once(tmp_path):
    video, text = touch(tmp_path / "v/a.mp4"), touch(tmp_path / "a.txt")
    (tmp_path / "empty").mkdir()
    paths = [tmp_path / "gone", text, tmp_path / "empty", video.parent, video]
    with pytest.raises(UserError) as caught:
        find_videos(paths)
    gone, other, empty, again = str(caught.value).splitlines()
    assert gone == f"{tmp_path}/gone: does not exist"
    assert other.startswith(f"{text}: is not named like a video; known types: 3gp asf avi")
    assert empty.startswith(f"{tmp_path}/empty: no videos in this folder; known types:")
    assert again == f"{video}: names the video {video} again; remove one of the two"


def test_a_folder_is_searched_until_a_video_is_found(tmp_path):
    assert list(videos_below(tmp_path)) == []
    video = touch(tmp_path / "x/a.mp4")
    assert next(videos_below(tmp_path)) == video
