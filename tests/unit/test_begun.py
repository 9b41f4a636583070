"""yolods.data.pack.begun: what is finished is found again, and one process packs at a time."""

import os
import shutil

import pytest

from tests.packs import hashes, make_odd_set, pack_of
from yolods.data.index.table import IndexWriter
from yolods.data.pack.begun import BegunPack, PackBusy, blocks_of, settings_changes
from yolods.data.pack.manifest import pack_index
from yolods.data.pack.sample import PACK_COLUMNS
from yolods.data.pack.shard import ShardWriter
from yolods.errors import UserError

SETTINGS = {"split": "train", "imgsz": None}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch):
    """A power cut is not played here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def pack(tmp_path):
    make_odd_set(tmp_path / "set", train=3)
    folder = tmp_path / "made.pack"
    pack_of(tmp_path / "set/tiny.yaml", folder)
    return folder


def finish_one(begun: BegunPack, folder, pack) -> None:
    """Finish a tar file whose index is that of a whole pack."""
    tar = ShardWriter(folder / f"0000{len(begun.shards)}.tar")
    tar.add("images/a.jpg", b"x")
    with begun.new_index() as writer:
        for block in blocks_of(pack_index(pack)):
            writer.add(block)
    begun.finish_shard(tar.finish())


def test_finished_tar_files_are_found_and_the_rest_is_removed(tmp_path, pack):
    folder = tmp_path / "a.pack"
    begun = BegunPack(folder, SETTINGS, overwrite=False)
    finish_one(begun, folder, pack)
    finish_one(begun, folder, pack)
    begun.new_index().__exit__(None, None, None)
    (folder / ".00002.tar.part").write_bytes(b"x")
    (folder / "00002.tar").write_bytes(b"x")
    begun.release()
    again = BegunPack(folder, SETTINGS, overwrite=False)
    assert [shard.file for shard in again.shards] == ["00000.tar", "00001.tar"]
    assert sorted(path.name for path in folder.iterdir()) == [
        *("00000.tar", "00001.tar", "unfinished")
    ]
    assert sorted(path.name for path in (folder / "unfinished").iterdir()) == [
        *("00000", "00001", "settings.json")
    ]
    again.release()


@pytest.mark.parametrize("harm", ["tar", "rows", "column"])
def test_what_a_crash_has_left_incomplete_counts_as_not_done(tmp_path, pack, harm):
    folder = tmp_path / "a.pack"
    begun = BegunPack(folder, SETTINGS, overwrite=False)
    for _ in range(2):
        finish_one(begun, folder, pack)
    begun.release()
    if harm == "tar":
        (folder / "00000.tar").write_bytes(b"")
    elif harm == "rows":
        (folder / "unfinished/00000/index.json").write_bytes(b"")
    else:
        (folder / "unfinished/00000/box.npy").write_bytes(b"")
    again = BegunPack(folder, SETTINGS, overwrite=False)
    assert again.shards == []
    assert list(folder.glob("*.tar")) == []
    again.release()


def test_all_rows_are_copied(tmp_path, pack, monkeypatch):
    monkeypatch.setattr("yolods.data.pack.begun.ROWS_AT_ONCE", 3)
    index = pack_index(pack)
    with IndexWriter(tmp_path / "copy", PACK_COLUMNS) as writer:
        for block in blocks_of(index):
            writer.add(block)
    for file in (pack / "index").iterdir():
        assert (tmp_path / "copy" / file.name).read_bytes() == file.read_bytes(), file.name


def test_another_process_is_refused(tmp_path):
    begun = BegunPack(tmp_path / "a.pack", SETTINGS, overwrite=False)
    child = os.fork()
    if not child:
        try:
            BegunPack(tmp_path / "a.pack", SETTINGS, overwrite=True)
        except UserError as error:
            os._exit(7 if "another process is writing" in str(error) else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    begun.release()
    begun.release()
    BegunPack(tmp_path / "a.pack", SETTINGS, overwrite=False).release()


def test_other_settings_are_refused_unless_it_starts_again(tmp_path, pack):
    folder = tmp_path / "a.pack"
    begun = BegunPack(folder, SETTINGS, overwrite=False)
    finish_one(begun, folder, pack)
    begun.release()
    other = {**SETTINGS, "imgsz": 640}
    with pytest.raises(UserError, match=r"other settings \(imgsz: None, now 640\)"):
        BegunPack(folder, other, overwrite=False)
    again = BegunPack(folder, other, overwrite=True)
    assert again.shards == [] and list(folder.glob("*.tar")) == []
    again.release()
    BegunPack(folder, other, overwrite=False).release()


def test_settings_that_a_crash_has_cut_off_count_as_none(tmp_path):
    (tmp_path / "a.pack/unfinished").mkdir(parents=True)
    (tmp_path / "a.pack/unfinished/settings.json").write_text('{"spl')
    BegunPack(tmp_path / "a.pack", {"split": "val"}, overwrite=False).release()
    assert list(tmp_path.iterdir()) == [], "nothing was finished"


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "a.pack").mkdir()
    (tmp_path / "a.pack/00000.tar").write_text("of a user")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="has files that are no pack"):
            BegunPack(tmp_path / "a.pack", SETTINGS, overwrite=overwrite)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        BegunPack(tmp_path / "file", SETTINGS, overwrite=True)


def test_starting_again_removes_only_files_of_a_pack(tmp_path, pack):
    (pack / "notes.txt").write_text("of a user")
    begun = BegunPack(pack, SETTINGS, overwrite=True)
    assert sorted(path.name for path in pack.iterdir()) == ["notes.txt", "unfinished"]
    begun.release()
    shutil.rmtree(pack)


def test_changes_of_settings():
    assert settings_changes({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == [
        *("b: 2, now 3", "c: None, now 4")
    ]


def test_a_pack_that_another_process_has_just_finished_is_left_alone(tmp_path, pack):
    before = hashes(pack)
    with pytest.raises(PackBusy, match="another process has just finished"):
        BegunPack(pack, SETTINGS, overwrite=False)
    assert hashes(pack) == before and not (pack / "unfinished").exists()
