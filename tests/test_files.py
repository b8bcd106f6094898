import re

import pytest

from mlsh.errors import UserError
from mlsh.runs import files
from mlsh.runs.files import make_folder, safe_name, write_whole, writing


def test_a_file_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "x.txt"
    write_whole(path, "first")
    write_whole(path, "zweite ü")
    assert path.read_text(encoding="utf-8") == "zweite ü"
    write_whole(path, "\udc80")  # from a folder's name that is no UTF-8
    assert path.read_text(encoding="utf-8") == "\\udc80"
    write_whole(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "x.txt"
    write_whole(path, "old")

    def full_disk(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, step, full_disk)
    with pytest.raises(UserError, match=r"^cannot write .*x\.txt .*No space left.*free disk space"):
        write_whole(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["x.txt"]


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot write"):
        write_whole(tmp_path / "no" / "x.txt", "")
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot make the folder .*; name another with --out"):
        make_folder(tmp_path / "file" / "folder")
    make_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()


def test_any_text_gives_a_safe_file_name():
    for text in ("0", "right", "A-b_c.7", "-1.0", "x" * 60):
        assert safe_name(text) == text
    changed = ["maps/right", "maps right", "maps-right\0", "[0.25, 1e-07]", "../..", "ä", "", "x" * 61, "x" * 62]
    names = {safe_name(text) for text in changed}
    assert len(names | {"maps-right", "x" * 60}) == len(changed) + 2
    assert all(re.fullmatch(r"[A-Za-z0-9._-]{1,60}", name) for name in names)
