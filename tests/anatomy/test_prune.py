"""The command that prunes a trained model, tunes it, and measures what both did."""

import json
import re
import shutil
import signal
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from recorded_runs import Recorder, interrupt, last
from tiny_runs import differences, files_below, signals_as_before

from densenet_backbones import load
from densenet_backbones.anatomy.opening import open_model
from densenet_backbones.anatomy.prune import main
from densenet_backbones.anatomy.pruning import mask_weights
from densenet_backbones.data.mask_samples import MaskClasses
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.inference.segmenter import SegmenterSpec
from densenet_backbones.training import engine

pytestmark = pytest.mark.usefixtures("empty_figures")


def deepen(opened):
    """Describe a tiny model with more layers: one a block leaves nothing to spare."""
    kwargs = {**opened.args["backbone_kwargs"], "block_config": [2, 2, 2, 2]}
    return replace(opened.spec, args={**opened.args, "backbone_kwargs": kwargs})


@pytest.fixture
def deeper_run(tiny_run, tmp_path):
    """A folder as of a run, of a deeper model that was not trained."""
    opened = open_model(str(tiny_run))
    spec = deepen(opened)
    torch.manual_seed(0)
    save_model(tmp_path / "deeper/model.safetensors", spec, spec.build())
    shutil.copy(tiny_run / "config.yaml", tmp_path / "deeper")
    return tmp_path / "deeper"


def read_outputs(model):
    """In float64, where the order of sums, which differs, does not show."""
    torch.manual_seed(0)
    with torch.no_grad():
        return model.double().eval()(torch.rand(2, 3, 64, 64).double())


def test_a_run_is_pruned_measured_and_tuned(deeper_run, tiny_scenes, tmp_path):
    before, out = files_below(deeper_run), tmp_path / "pruned"
    words = [deeper_run, "--keep", 0.8, "--layers", 1, "--data", tiny_scenes, "--workers", 0]
    words += ["--fine-tune", 1, "--batch-size", 4, "--lr", 0.001, "--out", out]
    main([str(word) for word in words])
    assert files_below(deeper_run) == before
    found = json.loads((out / "prune.json").read_text())
    rows = {row["title"]: row for row in found["rows"]}
    assert list(rows) == ["before", "after", "fine-tuned"] and len(found["absent_layers"]) == 1
    assert all("AP50" in row["numbers"] for row in rows.values())
    for cost in ("parameters", "macs"):
        assert rows["before"][cost] > rows["after"][cost] == rows["fine-tuned"][cost]
    first_words = [line.split()[:1] for line in (out / "prune.txt").read_text().splitlines()]
    assert all([title] in first_words for title in rows)
    whole, after = open_model(str(deeper_run)), open_model(str(out / "model.safetensors"))
    sizes = [sum(p.numel() for p in opened.model.parameters()) for opened in (whole, after)]
    assert sizes == [rows[title]["parameters"] for title in ("before", "after")]
    tuned = open_model(str(out / "fine-tuning"))
    assert tuned.args["connections"] == after.args["connections"]
    assert load(out / "fine-tuning").spec.class_names == whole.spec.class_names


def test_a_file_equals_the_masked_model_and_is_pruned_again(tiny_segmentation, tmp_path):
    spec = deepen(open_model(str(tiny_segmentation)))
    torch.manual_seed(0)
    save_model(tmp_path / "whole.safetensors", spec, spec.build())
    files = [tmp_path / name for name in ("whole.safetensors", "1", "2")]
    for source, out in pairwise(files):
        main([str(source), "--keep", "0.9", "--plain", "--out", str(out)])
        assert sorted(files_below(out)) == ["model.safetensors", "prune.json", "prune.txt"]
        before, after = open_model(str(source)), open_model(str(out))
        expected = read_outputs(mask_weights(before.model, after.net.spec.connections))
        found = read_outputs(load(out / "model.safetensors").model)
        assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(read_outputs(before.model), expected, rtol=1e-4, atol=1e-5)
    assert after.args == {**spec.args, "connections": after.args["connections"]}
    inner = {**spec.args["backbone_kwargs"], "connections": after.args["connections"]}
    spec = replace(spec, args={**spec.args, "backbone_kwargs": inner})
    save_model(tmp_path / "inner.safetensors", spec, after.model)
    main([str(tmp_path / "inner.safetensors"), "--keep", "0.9", "--out", str(tmp_path / "3")])
    again = open_model(str(tmp_path / "3"))
    assert again.args.keys() == spec.args.keys()
    assert again.args["backbone_kwargs"]["connections"] != inner["connections"]


def test_encoders_of_smp_are_pruned(tmp_path):
    classes = MaskClasses.from_names(["cell", "gap"])
    torch.manual_seed(0)
    spec = SegmenterSpec("smp:Unet", {"encoder_name": "densenet121_features"}, classes)
    whole = spec.build()
    save_model(tmp_path / "whole.safetensors", spec, whole)
    main([str(tmp_path / "whole.safetensors"), "--keep", "0.7", "--out", str(tmp_path / "out")])
    pruned = open_model(str(tmp_path / "out"))
    expected = read_outputs(mask_weights(whole, pruned.net.spec.connections))
    assert torch.allclose(read_outputs(pruned.model), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["densenet40_k12", "--keep", "0.5"], 1, "no trained weights"),
        (["nowhere.safetensors", "--keep", "0.5"], 1, "there is no"),
        (["RUN"], 2, "give --keep SHARE below 1, --layers N, or both"),
        (["RUN", "--keep", "0"], 1, "keep must lie in"),
        (["RUN", "--keep", "0.01"], 1, "keep a share of"),
        (["RUN", "--layers", "99"], 1, "layers cannot be taken out, but 0"),
        (["RUN", "--layers", "-1"], 1, "layers must be"),
        (["RUN", "--kep", "0.5"], 2, "--kep"),
        (["RUN", "--keep", "0.5", "--fine-tune", "1"], 2, "--data"),
        (["RUN", "--keep", "0.5", "--resume"], 2, "--resume goes on with a --fine-tune"),
    ],
)
def test_what_cannot_be_is_one_sentence(words, code, sentence, tiny_run, refused_command, tmp_path):
    words = [str(tiny_run) if word == "RUN" else word for word in words]
    found, line = refused_command(main, *words, "--out", tmp_path / "out")
    assert found == code and sentence in line
    assert not (tmp_path / "out").exists()


@pytest.mark.long
def test_a_stopped_tuning_goes_on_bit_for_bit(deeper_run, tiny_scenes, tmp_path, capsys):
    words = [deeper_run, "--keep", 0.8, "--data", tiny_scenes, "--workers", 0, "--fine-tune", 2]
    words += ["--batch-size", 4, "--lr", 0.001, "--out"]

    def tune(out, *more, stop=None):
        recorder = Recorder(stop)
        with pytest.MonkeyPatch.context() as patch, signals_as_before():
            signal.signal(signal.SIGINT, signal.default_int_handler)
            patch.setattr(engine, "TrainingPictures", lambda folder: recorder)
            try:
                main([str(word) for word in (*words, out, *more)])
            except SystemExit as end:
                return end.code, recorder.seen
        return None, recorder.seen

    code, expected = tune(tmp_path / "whole")
    assert code is None and len(expected) == 6
    out = tmp_path / "stopped"
    code, seen = tune(out, stop=("train_batch_start", 5, interrupt))
    assert code == 130 and len(seen) == 5
    assert f"the same command, --out {out} --resume" in capsys.readouterr().out
    measured = read_table(out)
    assert list(measured) == ["before", "after"]
    code, more = tune(out, "--resume")
    assert code is None and {**seen, **more} == expected and len(more) == 1
    assert differences(*(last(d / "fine-tuning") for d in (out, tmp_path / "whole"))) == []
    table = read_table(out)
    assert table == read_table(tmp_path / "whole") and measured.items() < table.items()
    # What has finished is measured again, and trained no more.
    assert tune(out, "--resume") == (None, {})
    assert read_table(out) == table


def read_table(out):
    """Rows of a pruning's table by title, without what depends on the machine's load."""
    rows = json.loads((out / "prune.json").read_text())["rows"]
    return {
        row["title"]: {k: v for k, v in row["numbers"].items() if not re.search("second", k)}
        for row in rows
    }


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"rows": []}', '{"rows": 3}', '{"rows": [{"title": 1}]}']
)
def test_a_pruning_that_cannot_go_on_is_one_sentence(
    content, tiny_run, tiny_scenes, refused_command, tmp_path
):
    if content is not None:
        (tmp_path / "prune.json").write_text(content)
    words = [tiny_run, "--data", tiny_scenes, "--keep", "0.5", "--fine-tune", "1", "--resume"]
    code, line = refused_command(main, *map(str, words), "--out", tmp_path)
    assert code == 1 and "prune anew" in line and "prune.json" in line
