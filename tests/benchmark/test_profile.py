"""Where a training step's time goes: by kind of operation, all of it, in each memory mode."""

import json

import pytest

from densenet_backbones.benchmark.command import main


@pytest.mark.parametrize("model", ["dsod_tiny", "fcdensenet56"])
@pytest.mark.usefixtures("compiled")
def test_kinds_add_up_and_kernels_take_the_place_of_operators(model, tmp_path, capfd):
    file = tmp_path / "profile.json"
    small = ["--models", model, "--batch", "2", "--size", "64", "--turns", "1"]
    assert main(["profile", *small, "--json", str(file)]) == 0
    assert "profiler_start" not in capfd.readouterr().err  # PyTorch's own lines
    (table,) = json.loads(file.read_text())["tables"]
    rows = {row.pop(""): row for row in table["rows"]}
    total = rows.pop("all")
    for column, value in total.items():
        if column.endswith("ms"):
            assert sum(row[column] for row in rows.values()) == pytest.approx(value)
    plain, kernels = (f"{mode}: ms" for mode in ("none", "shared"))
    assert rows["dense blocks in the kernels"][plain] == 0
    assert rows["dense blocks in the kernels"][kernels] > 0
    # A head's norms, which dsod_tiny has, take as long in both.
    assert rows["norms"][plain] > 0 and (rows["norms"][kernels] > 0) == (model == "dsod_tiny")
    assert (rows["dropout"][plain] > 0) == (model == "fcdensenet56")
