"""Every notebook runs from top to bottom in a fresh kernel and is committed without outputs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])(?:/(?:home|Users|root|tmp|work|opt|mnt|var|usr)/|[A-Z]:\\\\|file://)")
LONGEST_CELL_S = 90


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_without_outputs_and_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    nbformat.validate(json.loads(text))
    for cell in json.loads(text)["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None
        assert cell["metadata"] == {}
    assert MACHINE_PATH.findall(text) == []


def test_machine_paths_are_recognised() -> None:
    for seen in ("/home/me/x", "see /tmp/x", "C:\\\\\\\\Users", "file:///x"):
        assert MACHINE_PATH.search(seen), seen
    for fine in ("tokens/tmp/s", "https://example.org/home/page", "GB/s"):
        assert not MACHINE_PATH.search(fine), fine


MEASURING = ("03_calibrate_my_gpu",)  # these time the machine they run on
RUN = [pytest.param(p, marks=[pytest.mark.alone] * (p.stem in MEASURING), id=p.stem) for p in NOTEBOOKS]


@pytest.mark.slow
@pytest.mark.parametrize("path", RUN)
def test_runs_in_a_fresh_kernel(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jupyter = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    for variable in ("XDG_CONFIG_HOME", "IPYTHONDIR", *jupyter):  # nothing of the user's: calibrations, kernels
        monkeypatch.setenv(variable, str(tmp_path / variable))
    for variable in ("ROOFPLAN_CALIBRATION", "JUPYTER_PATH", "MPLBACKEND"):
        monkeypatch.delenv(variable, raising=False)
    notebook = nbformat.read(path, as_version=4)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    client = NotebookClient(notebook, timeout=LONGEST_CELL_S, kernel_name="python3")
    client.execute(cwd=str(folder))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert [o["text"] for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"] == []
    assert any("image/png" in o.get("data", {}) for o in outputs)
    assert list(folder.iterdir()) == []
