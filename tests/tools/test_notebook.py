"""The notebook of the first hour runs from its first cell to its last."""

import json

import nbformat
import pytest
from locations import PROJECT

NOTEBOOK = PROJECT / "tools" / "first_hour.ipynb"


def test_the_notebook_is_kept_without_outputs():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.mark.long
def test_the_notebook_runs(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="nbclient runs notebooks")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    shown = {cell["id"]: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    (picture,) = (out.data for out in shown["predict"] if out.output_type == "execute_result")
    assert "image/png" in picture, "a result draws itself"
    assert (tmp_path / "runs/first_hour/model.onnx").is_file()
