"""The list of predictions that moved: what it tells, and that it leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MOVED = Path(__file__).parent / "moved.py"
ROOT = MOVED.parent.parent


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(MOVED.parent))
    import moved

    return moved


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return done.stdout


def test_largest_changes_come_first_and_small_ones_do_not_come(moved) -> None:
    before = {"a": ("x", 1.0), "b": ("y", 1.0), "c": ("x", 1.0), "gone": ("x", 1.0), "same": ("x", 0.0)}
    after = {"a": ("x", 1.0009), "b": ("y", 0.5), "c": ("x", 1.1), "new": ("y", 2.0), "same": ("x", 0.0)}
    found = moved.compare(before, after)
    assert [m.name for m in found] == ["b", "c", "gone", "new"]
    text = moved.report(found, 5)
    assert "4 of 5" in text and "-50.00%" in text and text.index("y: 2") < text.index("x: 2")


def test_there_are_some_three_hundred_predictions_and_all_can_be_made(moved) -> None:
    answers = moved.price()
    assert answers["failed"] == {}
    assert 250 <= len(answers["values"]) <= 450 and all(value > 0 for _, value in answers["values"].values())


def test_a_comparison_leaves_no_worktree_behind(moved, capsys: pytest.CaptureFixture[str]) -> None:
    before = git("worktree", "list")
    assert moved.main(["HEAD"]) == 0
    assert "predictions moved" in capsys.readouterr().out
    assert git("worktree", "list") == before


def test_a_clone_of_one_commit_has_nothing_to_compare(tmp_path: Path) -> None:
    git("rev-parse", "HEAD")
    subprocess.run(["git", "clone", "--quiet", "--depth", "1", f"file://{ROOT}", str(tmp_path / "one")], check=True)
    copied = shutil.copy2(MOVED, tmp_path / "one" / "tests" / "moved.py")
    done = subprocess.run([sys.executable, copied], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "nothing to compare" in done.stdout
