"""The commands that use a trained detector: numbers, pictures, JSON, and refusals."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny_runs import files_below

from densenet_backbones.data.images import read_image
from densenet_backbones.inference import predict
from densenet_backbones.inference.loading import load
from densenet_backbones.reporting import detection_report
from densenet_backbones.training import evaluate

pytestmark = pytest.mark.usefixtures("empty_figures")


@pytest.fixture
def model(tiny_run, tmp_path):
    """A copy of a trained detector: evaluation writes beside it."""
    return shutil.copy(tiny_run / "model.safetensors", tmp_path / "model.safetensors")


@pytest.fixture
def refused(capsys):
    """Runs a command that is refused; returns (exit code, its one line on stderr)."""

    def run(command, *argv):
        with pytest.raises(SystemExit) as end:
            command.main([str(a) for a in argv])
        lines = [
            line for line in capsys.readouterr().err.splitlines() if "GPU available" not in line
        ]
        assert len(lines) == 1 and lines[0].startswith("error: "), lines
        return end.value.code, lines[0]

    return run


@pytest.fixture
def unplotted(monkeypatch):
    """Evaluations without their plots, which take most of the time."""
    plots = "plot_pr_curves", "plot_confidence_curves", "plot_confusion", "draw_examples"
    for name in (*plots, "write_errors"):
        monkeypatch.setattr(detection_report, name, lambda *args: None)


# -- evaluate --------------------------------------------------------------------------------------


def evaluated(model, data, out, *options):
    evaluate.main(
        [
            *(str(model), "--data", str(data), "--out", str(out), "--batch-size", "4"),
            *("--workers", "0", "--accelerator", "cpu", "--devices", "1", *options),
        ]
    )
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture(scope="module")
def of_the_training(tiny_run):
    return json.loads((tiny_run / "evaluation/metrics.json").read_text())


def test_a_checkpoint_evaluates_to_the_numbers_of_its_training(
    tiny_run, tiny_scenes, of_the_training, tmp_path
):
    found = evaluated(tiny_run / "checkpoints/best.ckpt", tiny_scenes, tmp_path / "out")
    assert found == of_the_training
    for name in ("results.json", "table.txt"):
        written = (tmp_path / "out" / name).read_bytes()
        assert written == (tiny_run / "evaluation" / name).read_bytes()
    files = set(files_below(tiny_run / "evaluation"))
    assert set(files_below(tmp_path / "out")) == files | {"timing.json"}
    times = json.loads((tmp_path / "out/timing.json").read_text())
    assert times["batches"] == 1 and times["batch_size"] == 3  # the first does not count
    for step in times["steps"].values():
        assert 0 < step["p10_ms"] <= step["median_ms"] <= step["p90_ms"]


def test_its_detections_alone_evaluate_to_the_same(
    model, tiny_run, tiny_scenes, of_the_training, tmp_path, capsys, unplotted
):
    """Classes are told by name where another list gives the ids; and nothing is better or worse."""
    results = json.loads((tiny_run / "evaluation/results.json").read_text())
    file = tiny_scenes / "annotations/instances_val.json"
    known = {c["id"]: c["name"] for c in json.loads(file.read_text())["categories"]}
    others = {name: number for number, name in enumerate(sorted(known.values()), start=300)}
    renumbered = [{**r, "category_id": others[known[r["category_id"]]]} for r in results]
    (tmp_path / "r.json").write_text(json.dumps(renumbered))
    listed = [{"id": number, "name": name} for name, number in others.items()]
    (tmp_path / "classes.json").write_text(json.dumps(listed))
    out = tmp_path / "out"
    evaluate.main(
        [
            *("--detections", str(tmp_path / "r.json"), "--categories"),
            *(str(tmp_path / "classes.json"), "--against", str(model), "--workers", "0"),
            *("--data", str(tiny_scenes), "--out", str(out), "--batch-size", "4"),
            *("--accelerator", "cpu", "--devices", "1"),
        ]
    )
    assert json.loads((out / "metrics.json").read_text()) == of_the_training
    assert "the names that the list of categories gives to their ids" in capsys.readouterr().out
    compared = json.loads((out / "comparison.json").read_text())
    assert compared["models"] == ["r", tmp_path.name]
    assert compared["images"] == {
        "first_better": 0,
        "second_better": 0,
        "equal": 7,
        **dict.fromkeys(("difference", "low", "high"), 0.0),
    }
    assert compared["numbers"][0] == {
        k: v for k, v in compared["numbers"][1].items() if k != "seconds_an_image"
    }
    rows = (out / "comparison.csv").read_text().splitlines()
    assert len(rows) == 8 and rows[0].startswith(f"image_id,file,F1 r,F1 {tmp_path.name},")


def test_detections_are_evaluated_without_the_image_files(tiny_scenes, tmp_path, refused_command):
    """Each object, detected with one score, is right, where the best score is that one."""
    annotations = tmp_path / "data/annotations"
    annotations.mkdir(parents=True)
    shutil.copy(tiny_scenes / "annotations/instances_val.json", annotations)
    truth = json.loads((annotations / "instances_val.json").read_text())
    objects = [a for a in truth["annotations"] if not a["iscrowd"]]
    keys = ("image_id", "category_id", "bbox", "segmentation")
    found = [{**{key: a[key] for key in keys}, "score": 0.9} for a in objects]
    (tmp_path / "found.json").write_text(json.dumps(found))
    options = ("--detections", tmp_path / "found.json", "--data", tmp_path / "data")
    evaluate.main([*map(str, options), "--out", str(tmp_path / "out")])
    numbers = json.loads((tmp_path / "out/metrics.json").read_text())
    assert numbers["coco"]["numbers"]["AP"] == numbers["coco_segm"]["numbers"]["AP"] == 1
    assert numbers["errors"]["ap"] == numbers["errors_segm"]["ap"] == 1
    rows = (tmp_path / "out/images.csv").read_text().splitlines()[1:]
    assert len(rows) == len(truth["images"]) and all(",0,0,1.0,0.9" in row for row in rows)
    written = files_below(tmp_path / "out")
    assert "mask_error_kinds.png" in written and not {"predictions.png", "worst_images.png"} & {
        *written
    }
    # A file that is there after all has the size that its annotations say.
    (tmp_path / "data/val").mkdir()
    file = tmp_path / "data/val" / truth["images"][3]["file_name"]
    Image.new("RGB", (32, 32)).save(file)
    code, line = refused_command(evaluate.main, *options, "--out", tmp_path / "other")
    assert code == 1 and f"{file.name}: is 32x32 pixels as shown, its annotations say 64x64" in line


def test_voc_layout_gives_the_numbers_of_coco_layout(model, tiny_scenes, tmp_path, unplotted):
    """Classes come from the checkpoint; VOC's own order of them is another."""
    voc_root = tmp_path / "voc"
    shutil.copytree(tiny_scenes / "VOC", voc_root)
    from_voc = evaluated(model, voc_root, tmp_path / "a", "--layout", "voc")
    assert read_order(voc_root) != list(load(model).categories.names)
    plain = without_crowds(tiny_scenes, tmp_path / "coco")
    from_coco = evaluated(model, plain, tmp_path / "b")
    for name in ("AP", "AP50", "AP75", "AR1", "AR10", "AR100"):
        assert from_voc["coco"]["numbers"][name] == from_coco["coco"]["numbers"][name], name
    assert from_voc["coco"]["numbers"]["AP50"] > 0
    per_class = [
        {row["name"]: (row["objects"], row["ap"]) for row in found["coco"]["classes"]}
        for found in (from_voc, from_coco)
    ]
    assert per_class[0] == per_class[1]


def test_ids_and_the_order_of_classes_in_the_evaluated_file_change_nothing(
    model, tiny_scenes, of_the_training, tiny_run, tmp_path, unplotted
):
    root, ids = tmp_path / "renumbered", {}
    shutil.copytree(tiny_scenes, root, ignore=shutil.ignore_patterns("VOC", "panoptic*"))
    file = root / "annotations/instances_val.json"
    content = json.loads(file.read_text())
    # Ids in another order, among them those that other classes have in training.
    known = [category["id"] for category in content["categories"]]
    ids = dict(zip(known, (*known[2:], 0, 700), strict=True))
    content["categories"] = [{**c, "id": ids[c["id"]]} for c in content["categories"]][::-1]
    content["annotations"] = [
        {**a, "category_id": ids[a["category_id"]]} for a in content["annotations"]
    ]
    file.write_text(json.dumps(content))
    found = evaluated(model, root, tmp_path / "out")
    assert found["coco"]["numbers"] == of_the_training["coco"]["numbers"]
    assert found["voc"] == of_the_training["voc"]
    per_class = [
        {row.pop("name"): {**row, "category_id": None} for row in numbers["coco"]["classes"]}
        for numbers in (found, json.loads(json.dumps(of_the_training)))
    ]
    assert per_class[0] == per_class[1]
    before = json.loads((tiny_run / "evaluation/results.json").read_text())
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results == [{**row, "category_id": ids[row["category_id"]]} for row in before]


def read_order(voc_root):
    from densenet_backbones.data.readers.detection_sources import read_detection

    return list(read_detection(voc_root, "val", layout="voc").categories.names)


def without_crowds(scenes, root):
    """VOC has no crowds: the scenes with theirs taken away."""
    shutil.copytree(scenes, root, ignore=shutil.ignore_patterns("VOC", "panoptic*"))
    for file in (root / "annotations").glob("instances_*.json"):
        content = json.loads(file.read_text())
        content["annotations"] = [a for a in content["annotations"] if not a["iscrowd"]]
        file.write_text(json.dumps(content))
    return root


def test_the_threshold_of_vocs_numbers_can_be_set(model, tiny_scenes, tmp_path, unplotted):
    strict = evaluated(model, tiny_scenes, tmp_path / "a", "--voc-iou", "0.95")
    loose = evaluated(model, tiny_scenes, tmp_path / "b", "--voc-iou", "0.05")
    assert strict["voc"] != loose["voc"] and strict["coco"] == loose["coco"]
    assert loose["voc"]["mean_ap"] > strict["voc"]["mean_ap"]


def test_mirrored_views_and_soft_nms_change_the_numbers_of_boxes(
    model, tiny_scenes, tmp_path, unplotted, of_the_training
):
    for number, asked in enumerate((("--tta", "flip"), ("--soft-nms", "linear"))):
        found = evaluated(model, tiny_scenes, tmp_path / str(number), *asked)
        assert found["coco"]["numbers"] != of_the_training["coco"]["numbers"], asked
        assert found["coco"]["images"] == 7 and found["coco"]["numbers"]["AP50"] > 0


def test_the_other_split_and_the_folder_beside_the_checkpoint(
    model, tiny_scenes, tmp_path, unplotted
):
    evaluate.main(
        [
            *(str(model), "--data", str(tiny_scenes), "--split", "train", "--workers", "0"),
            *("--accelerator", "cpu", "--devices", "1"),
        ]
    )
    found = json.loads((tmp_path / "evaluation-train/metrics.json").read_text())
    assert found["coco"]["images"] == 12


def test_evaluate_refuses_in_one_line(refused, model, tiny_scenes, tmp_path):
    common = ("--data", tiny_scenes, "--workers", "0")
    (tmp_path / "bad.ckpt").write_text("x")
    for argv, code, message in (
        ((model, "--data", tmp_path / "none"), 1, "none: there is no such file or folder"),
        ((model, *common, "--split", "test"), 1, "has no annotations/instances_test.json"),
        ((model, *common, "--batch-size", "0"), 1, "batch_size must be at least 1"),
        (common, 1, "give a model, or --detections FILE in its place"),
        ((model, *common, "--detections", "x"), 1, "give a model, or --detections FILE"),
        ((model, *common, "--categories", "x"), 1, "--categories tells the ids of --detections"),
        (("--detections", tmp_path / "no.json", *common), 1, "no.json: there is no such file"),
        ((tmp_path / "no.ckpt", *common), 1, "no.ckpt: there is no such file"),
        ((tmp_path / "bad.ckpt", *common), 1, "bad.ckpt: "),
        ((model, *common, "--tta-scales", "1,2"), 1, "DSOD sees every image at one size"),
        ((model, *common, "--accelerator", "cpu", "--devices", "0"), 2, "devices"),
    ):
        found_code, line = refused(evaluate, *argv)
        assert message in line
        assert found_code == code, line
    assert files_below(tmp_path).keys() == {"model.safetensors", "bad.ckpt"}


def test_data_with_an_unknown_class_is_refused(refused, model, tiny_scenes, tmp_path):
    root = without_crowds(tiny_scenes, tmp_path / "more")
    file = root / "annotations/instances_val.json"
    file.write_text(file.read_text().replace('"circle"', '"comet"'))
    code, line = refused(evaluate, model, "--data", root)
    assert code == 1
    assert "comet" in line


# -- predict ---------------------------------------------------------------------------------------


def predicted(model, out, *images, score=0.0, options=()):
    argv = [str(model), *map(str, images), "--out", str(out), "--score", str(score)]
    predict.main([*argv, "--device", "cpu", *options])
    return json.loads((out / "predictions.json").read_text())


@pytest.mark.usefixtures("drawn")
def test_predict_writes_what_the_detector_finds(model, tiny_scenes, tmp_path, capsys):
    rows = predicted(model, tmp_path / "out", tiny_scenes / "val", options=("--batch-size", "3"))
    files = sorted((tiny_scenes / "val").iterdir())
    assert [row["file"] for row in rows] == [str(file) for file in files]
    detector = load(model)
    for row, file in zip(rows, files, strict=True):
        expected = detector.predict(file, 0)
        assert (row["width"], row["height"]) == (64, 64)
        assert len(row["detections"]) == len(expected) > 0
        scores = [found["score"] for found in row["detections"]]
        np.testing.assert_allclose(scores, expected.scores, atol=1e-4)
        boxes = np.array([found["box"] for found in row["detections"]])
        np.testing.assert_allclose(boxes.sum(0), expected.boxes.sum(0), rtol=1e-3)
        assert sorted(f["name"] for f in row["detections"]) == sorted(expected.names)
        with Image.open(row["picture"]) as picture:
            assert picture.width >= 64
    total = sum(len(row["detections"]) for row in rows)
    assert f"{total} objects in 7 images" in capsys.readouterr().out


def test_predict_in_mixed_precision_finds_about_the_same(model, tiny_scenes, tmp_path):
    rows = [
        predicted(
            model,
            tmp_path / name,
            tiny_scenes / "val",
            options=("--precision", name, "--no-pictures"),
        )
        for name in ("32-true", "bf16-mixed")
    ]
    found = [[[d["score"] for d in row["detections"]] for row in part] for part in rows]
    whole, mixed = (np.array([sorted(scores)[-5:] for scores in part]) for part in found)
    assert not np.array_equal(whole, mixed)
    np.testing.assert_allclose(whole, mixed, atol=0.05)


@pytest.mark.usefixtures("drawn")
def test_a_lying_photograph_is_upright_in_json_and_picture(model, tiny_scenes, tmp_path):
    pixels = read_image(sorted((tiny_scenes / "val").iterdir())[0])[:48]
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(pixels)).save(tmp_path / "lying.png", exif=exif)
    upright, lying = predicted(
        model, tmp_path / "out", tmp_path / "upright.png", tmp_path / "lying.png"
    )
    assert (lying["width"], lying["height"]) == (64, 48)
    assert lying["detections"] == upright["detections"]
    assert all(
        0 <= x1 < x2 <= 64 and 0 <= y1 < y2 <= 48
        for x1, y1, x2, y2 in (found["box"] for found in lying["detections"])
    )
    pictures = [Image.open(row["picture"]).convert("RGB") for row in (upright, lying)]
    assert np.array_equal(*map(np.asarray, pictures))


@pytest.mark.usefixtures("drawn")
def test_names_that_clash_get_pictures_of_their_own(model, tiny_scenes, tmp_path):
    source = sorted((tiny_scenes / "val").iterdir())
    names = ["a/x/1.png", "b/x/1.png", "a/x/1.jpg", "b/1_2.png", "b/X/1.PNG"]
    for name, file in zip(names, source, strict=False):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).save(tmp_path / name)
    rows = predicted(model, tmp_path / "out", *(tmp_path / name for name in names), score=1)
    pictures = [row["picture"] for row in rows]
    assert len({picture.lower() for picture in pictures}) == len(names)
    for row, name in zip(rows, names, strict=True):  # nothing is found: pictures as they were
        shown = np.asarray(Image.open(row["picture"]).convert("RGB"))
        original = read_image(tmp_path / name)
        assert np.abs(shown[:64, :64].astype(int) - original).mean() < 5, name


def test_only_pictures_are_taken_from_a_folder(model, tiny_scenes, tmp_path):
    folder = tmp_path / "mixed"
    folder.mkdir()
    shutil.copy(sorted((tiny_scenes / "val").iterdir())[0], folder / "b.JPG")
    (folder / "a.txt").write_text("no picture")
    rows = predicted(model, tmp_path / "out", folder, options=("--no-pictures",))
    assert [row["file"] for row in rows] == [str(folder / "b.JPG")]
    assert rows[0]["picture"] is None
    assert files_below(tmp_path / "out").keys() == {"predictions.json"}


def test_a_picture_is_never_replaced_by_its_drawing(refused, model, tiny_scenes, tmp_path):
    source = tmp_path / "mine"
    source.mkdir()
    Image.open(sorted((tiny_scenes / "val").iterdir())[0]).save(source / "photo.png")
    before = files_below(source)
    code, line = refused(predict, model, source, "--out", source)
    assert code == 1
    assert "photo.png would be overwritten; name another folder with --out" in line
    assert files_below(source) == before


def test_predict_refuses_in_one_line(refused, model, tiny_scenes, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    image = sorted((tiny_scenes / "val").iterdir())[0]
    out = ("--out", tmp_path / "out")
    for argv, message in (
        ((model, tmp_path / "none.jpg", *out), "none.jpg: there is no such file or folder"),
        (
            (model, tmp_path / "empty", *out),
            "empty: no images here; give files, or a folder of .avif .bmp .gif",
        ),
        ((model, image, tmp_path / "broken.jpg", *out), "broken.jpg"),
        ((model, image, "--score", "1.5", *out), "--score must lie in [0, 1], got 1.5"),
        ((model, image, "--score", "nan", *out), "--score must lie in [0, 1], got nan"),
        ((model, image, "--batch-size", "0", *out), "--batch-size must be at least 1, got 0"),
        ((model, image, "--device", "gpu", *out), "device gpu: "),
        ((tmp_path / "no.ckpt", image, *out), "no.ckpt: there is no such file"),
    ):
        code, line = refused(predict, *argv)
        assert message in line
        assert code == 1
