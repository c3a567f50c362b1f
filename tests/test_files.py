"""Files are in place completely or not at all, whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from roofplan.errors import InputError, SurroundingsError
from roofplan.files import check, replacing, write_text


def test_a_new_file_and_a_replaced_one(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "a.txt"
    write_text(path, "one")
    write_text(path, "zwölf")
    assert path.read_bytes() == "zwölf".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_file_gets_the_usual_permissions_and_a_long_name_is_no_trouble(tmp_path: Path) -> None:
    path, beside = tmp_path / ("x" * 251 + ".csv"), tmp_path / "beside"
    write_text(path, "")
    beside.touch()
    assert path.stat().st_mode == beside.stat().st_mode


@pytest.mark.parametrize("failure", [KeyboardInterrupt, ValueError, OSError(28, "No space left on device")])
def test_what_fails_on_the_way_leaves_the_old_file(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    expected = SurroundingsError if isinstance(failure, OSError) else failure
    with pytest.raises(expected), replacing(path, "--csv") as file:
        file.write(b"half of i")
        raise failure
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path: Path) -> None:
    """A limit on the size of files fails a write as a full disk does, below Python."""
    path = tmp_path / "a.txt"
    path.write_text("old")
    program = (
        "import resource, sys; from pathlib import Path; from roofplan.files import write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: write_text(Path(sys.argv[1]), 'x' * 100_000, '--csv')\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    shown = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    assert shown.stdout == f"SurroundingsError {path}: --csv: cannot be written: File too large\n"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX links")
def test_a_link_stays_and_its_file_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real.txt", tmp_path / "link.txt"
    real.write_text("old")
    link.symlink_to(real)
    write_text(link, "new")
    assert link.is_symlink() and real.read_text() == "new"


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX pipes")
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(SurroundingsError, match="not a regular file"):
        write_text(pipe, "x")
    for path, problem in ((pipe, "not a regular file"), (tmp_path, "is a folder"), (Path(os.devnull), "not a regular")):
        with pytest.raises(SurroundingsError, match=problem):
            check({"--csv": path})
    assert pipe.is_fifo()


def test_trouble_is_seen_before_any_work(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine.csv", tmp_path / "other.csv"
    check({"--csv": mine, "--plot": None, "--parquet": other}, {"MODEL": tmp_path / "model.json"})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="--parquet: would overwrite what --csv names"):
        check({"--csv": mine, "--parquet": tmp_path / "." / "mine.csv"})
    mine.write_text("")
    with pytest.raises(InputError, match="--csv: would overwrite what MODEL names"):
        check({"--csv": mine}, {"MODEL": mine})
    with pytest.raises(SurroundingsError, match="no such folder"):
        check({"--csv": tmp_path / "nowhere" / "mine.csv"})
    with pytest.raises(SurroundingsError, match="cannot be written"):
        check({"--csv": tmp_path / ("x" * 300)})


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="a folder where not even root makes files")
def test_a_folder_nobody_may_write_to_is_one_line() -> None:
    path = Path("/sys/kernel/mine.csv")
    with pytest.raises(SurroundingsError, match="--csv: cannot be written to: "):
        check({"--csv": path})
    with pytest.raises(SurroundingsError, match="--csv: cannot be written: "):
        write_text(path, "x", "--csv")
