"""The package as other people get it: wheel, sdist, editable, a clone with a hyphen in its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CODE_FOLDERS = ("calibrate", "hwspecs", "kernels", "simulator")
NOT_PACKAGED = {"notebooks", "scripts", "tests"}


def files_of_the_clone() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [Path(name) for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {"roofplan"}
    for top in CODE_FOLDERS:
        for init in (ROOT / top).rglob("__init__.py"):
            found.add(".".join(("roofplan", *init.parent.relative_to(ROOT).parts)))
        for module in (ROOT / top).rglob("*.py"):
            assert (module.parent / "__init__.py").exists(), f"{module.parent} holds code but no __init__.py"
    assert sorted(found) == sorted(listed)


def test_nothing_else_with_code_lies_at_the_top() -> None:
    tops = {path.parts[0] for path in files_of_the_clone() if path.suffix == ".py" and len(path.parts) > 1}
    assert tops - NOT_PACKAGED == set(CODE_FOLDERS)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree's files in a folder whose name is no identifier."""
    target = tmp_path_factory.mktemp("clones") / "roof-plan.clone"
    for path in files_of_the_clone():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, target / path)
    return target


@pytest.fixture(scope="module")
def built(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Wheel and sdist made from the clone."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(clone)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def environment_without_roofplan(folder: Path) -> Path:
    """The Python of a new virtual environment whose dependencies are this one's: a .pth file names their folder, and
    the editable finder of roofplan there is not followed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    query = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", query], capture_output=True, text=True, check=True).stdout.strip())
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(python: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def python_in(python: Path, where: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run([str(python), *arguments], cwd=where, capture_output=True, text=True, env=environment)


def test_the_wheel_works_from_another_folder(built: tuple[Path, Path], tmp_path: Path) -> None:
    empty_environment = environment_without_roofplan(tmp_path / "environment")
    assert python_in(empty_environment, tmp_path, "-c", "import roofplan").returncode != 0
    install(empty_environment, str(built[0]))
    where = python_in(empty_environment, tmp_path, "-c", "import roofplan; print(roofplan.__file__)").stdout
    assert str(empty_environment.parent.parent) in where
    for command in (["fits", "--gpu", "8xh200"], ["hw", "lint"], ["models", "list"], ["schema"], ["--version"]):
        done = python_in(empty_environment, tmp_path, "-m", "roofplan", *command)
        assert done.returncode == 0, done.stderr


def test_the_wheel_holds_the_data_and_nothing_loose(built: tuple[Path, Path]) -> None:
    names = zipfile.ZipFile(built[0]).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"roofplan"}
    for folder, suffix in (
        ("hwspecs", ".toml"),
        ("calibrate/bundled", ".json"),
        ("calibrate/anchors", ".csv"),
        ("calibrate", ".csv"),
    ):
        here = {p.relative_to(ROOT).as_posix() for p in (ROOT / folder).rglob(f"*{suffix}")}
        assert {f"roofplan/{name}" for name in here} <= set(names)
    assert "roofplan/simulator/workload/zoo.jsonl" in names
    assert "roofplan/py.typed" in names
    assert not [name for name in names if "/tests/" in name]


def test_the_sdist_holds_tests_and_builds_the_same_wheel(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[1]) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    for wanted in ("tests/test_packaging.py", "scripts/test", "LICENSE", "NOTICE", "README.md", "CHANGELOG.md"):
        assert wanted in names
    assert {f"notebooks/{path.name}" for path in (ROOT / "notebooks").glob("*.ipynb")} <= names


def test_an_editable_install_of_a_hyphenated_clone(clone: Path, tmp_path: Path) -> None:
    python = environment_without_roofplan(tmp_path / "environment")
    install(python, "--no-build-isolation", "--editable", str(clone))
    result = python_in(python, tmp_path, "-m", "roofplan", "fits", "llama-3.1-8b", "--gpu", "h200")
    assert result.returncode == 0, result.stderr
    assert "surely" in result.stdout


def test_data_date_is_not_older_than_the_data() -> None:
    import roofplan
    from roofplan.calibrate import store

    newest = max(c.provenance.fitted for path in store.bundled_files() for c in store.read(path))
    assert newest <= roofplan.DATA_DATE


def test_scripts_are_short_and_ci_calls_the_readmes_test_command() -> None:
    for script in (ROOT / "scripts").iterdir():
        assert len(script.read_text().splitlines()) <= 20
        assert os.access(script, os.X_OK)
    readme = (ROOT / "README.md").read_text()
    assert "scripts/test\n" in readme
    assert "scripts/run fits" in readme
    assert "scripts/test\n" in (ROOT / ".ci/run").read_text()
