"""Results of `load(...)`: all kinds of images give the same, and every form of it says the same."""

import csv
import io
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from densenet_backbones.data.images import open_image, read_image
from densenet_backbones.data.readers.voc.xml_file import read_voc_annotation
from densenet_backbones.inference.inputs.image_tensors import convert_image
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_views import DetectionViews
from densenet_backbones.inference.results.detections import Detection, Detections
from densenet_backbones.inference.segmenter import Segmentation
from densenet_backbones.reporting.legends import draw_legend

KINDS = ["tiny_run", "tiny_segmentation"]


@pytest.fixture(scope="module")
def models(tiny_run, tiny_segmentation):
    """A detector and a segmenter, from the folders of their runs."""
    detector, segmenter = load(tiny_run), load(tiny_segmentation)
    detector.score_thresh = 0.05
    return {"tiny_run": detector, "tiny_segmentation": segmenter}


@pytest.fixture(scope="module")
def file(tiny_scenes, tmp_path_factory):
    """A file without losses, so that all decoders agree."""
    path = tmp_path_factory.mktemp("image") / "photo.png"
    Image.fromarray(read_image(sorted((tiny_scenes / "val").iterdir())[0])[:60]).save(path)
    return path


@pytest.fixture(scope="module")
def detections(models, file):
    result = models["tiny_run"].predict(file)
    assert len(result) > 3 and len(set(result.names)) > 1
    return result


def same(first, second):
    if isinstance(first, Segmentation):
        equal = (first.labels == second.labels).all() and (first.scores == second.scores).all()
    else:
        equal = torch.equal(first.boxes, second.boxes) and torch.equal(first.scores, second.scores)
    return bool(equal) and type(first) is type(second) and len(first) == len(second) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_one_image_give_the_same(kind, models, file):
    model, pixels = models[kind], read_image(file)
    tensor = torch.from_numpy(pixels.transpose(2, 0, 1).copy())
    expected = model.predict(file)
    images = [str(file), pixels, Image.open(file), tensor, tensor / 255]
    results = model(images)
    assert isinstance(results, list) and all(same(result, expected) for result in results)
    taken = []
    lazy = model.predict(taken.append(n) or image for n, image in enumerate(images))
    assert taken == []
    assert same(next(lazy), expected) and taken == [0]
    assert isinstance(results[0].plot(), np.ndarray)
    assert all((result.plot() == expected.plot()).all() for result in results[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_gray_arrays_and_tensors_are_taken_as_their_files_are(kind, models, file, tmp_path):
    gray, path = np.asarray(Image.open(file).convert("L")), tmp_path / "gray.png"
    Image.fromarray(gray).save(path)
    expected = models[kind].predict(path)
    tensor = torch.from_numpy(gray.copy())[None]
    results = models[kind]([gray, gray[:, :, None], tensor, tensor / 255])
    assert len(results) == 4 and all(same(result, expected) for result in results)


def test_a_picture_of_pillow_is_turned_and_converted_as_its_file_is(models, file, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = tmp_path / "lying.png"
    Image.open(file).convert("L").rotate(90, expand=True).save(lying, exif=exif)
    assert same(models["tiny_run"](Image.open(lying)), models["tiny_run"](lying))


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (torch.zeros(1, 3, 8, 8), r"one image \(3, H, W\), got \(1, 3, 8, 8\)"),
        (torch.full((3, 8, 8), 7.0), r"floats must hold values in \[0, 1\], not normalized"),
        (torch.full((3, 8, 8), float("nan")), "not normalized"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "must be uint8 or floats"),
        (7, "an image must be a file, an address, .* got int"),
    ],
)
def test_other_images_are_refused(image, message, models):
    for model in models.values():
        with pytest.raises(ValueError, match=message):
            model.predict(image)


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_says_what_it_is(kind, models):
    shown = repr(models[kind])
    assert shown.startswith(f"<{type(models[kind]).__name__} ") and " on cpu, " in shown
    assert models[kind].spec.class_names[0] in shown and len(shown) < 200


@pytest.mark.parametrize("kind", KINDS)
def test_threads_get_what_one_gets(kind, models, tiny_scenes):
    """Also with views, for which settings of the one model are changed for a while."""
    model, files = models[kind], sorted((tiny_scenes / "val").iterdir())
    if kind == "tiny_run":
        model.views = DetectionViews(flip=True, soft_nms=None)
    expected = model.predict(files)
    start = threading.Barrier(4)

    def predict(_):
        start.wait()
        return [model.predict(file) for file in files]

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(predict, range(4)):
            assert all(map(same, results, expected))
    if kind == "tiny_run":
        model.views = None


def test_headers_read_by_threads_leave_pillows_limit(file):
    def read(_):
        for _ in range(50):
            with open_image(file, of_any_size=True):
                pass

    limit = Image.MAX_IMAGE_PIXELS
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert limit == Image.MAX_IMAGE_PIXELS


def test_detections_are_a_sequence(detections):
    rows = list(detections)
    assert len(rows) == len(detections) and isinstance(rows[0], Detection)
    assert detections[0] == rows[0] and detections[-1] == rows[-1]
    assert rows[0].name == detections.names[0]
    name = detections.names[0]
    for key in ([n == name for n in detections.names], detections.scores >= 0, slice(0, 2), [1, 0]):
        chosen = detections[key]
        assert isinstance(chosen, Detections) and chosen.image is detections.image
    assert list(detections[[1, 0]]) == [rows[1], rows[0]]
    assert set(detections[[n == name for n in detections.names]].names) == {name}
    assert len(detections[[]]) == 0 and repr(detections[[]]).endswith("photo.png: nothing")


def test_every_form_takes_any_name_of_a_file(detections, tmp_path):
    image = detections.image._replace(name="a\udcff\n\ufffe,\x1b.jpg")
    named = replace(detections, image=image)
    for suffix in ("json", "csv", "xml", "txt"):
        named.save(tmp_path / f"a.{suffix}")
    assert len(read_voc_annotation(tmp_path / "a.xml").objects) == len(detections)
    assert "<filename>a\\udcff__,_.jpg</filename>" in (tmp_path / "a.xml").read_text()
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text(), newline="")))
    assert {row["file"] for row in rows} == {"a\\udcff\n\ufffe,\x1b.jpg"}
    assert json.loads((tmp_path / "a.json").read_text())["file"] == named.file


def test_every_form_of_detections_has_the_same_boxes(detections, file, tmp_path):
    boxes, names = detections.boxes.numpy(), detections.names
    for suffix in ("json", "csv", "xml", "txt"):
        detections.save(tmp_path / f"a.{suffix}")
    as_json = json.loads((tmp_path / "a.json").read_text())["detections"]
    as_csv = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    voc = read_voc_annotation(tmp_path / "a.xml")
    yolo = np.loadtxt(tmp_path / "a.txt", ndmin=2)
    sides = yolo[:, 1:].reshape(-1, 2, 2) * [64, 60]
    table, coco = detections.to_pandas(), detections.to_coco(image_id=9)
    supervised = detections.to_supervision()
    of_coco = np.array([row["bbox"] for row in coco])
    found = {
        "json": [row["box"] for row in as_json],
        "csv": [[float(row[c]) for c in ("x1", "y1", "x2", "y2")] for row in as_csv],
        "voc": np.array([o.corners for o in voc.objects]) - [1, 1, 0, 0],
        "yolo": np.hstack([sides[:, 0] - sides[:, 1] / 2, sides[:, 0] + sides[:, 1] / 2]),
        "pandas": table[["x1", "y1", "x2", "y2"]].to_numpy(),
        "coco": np.hstack([of_coco[:, :2], of_coco[:, :2] + of_coco[:, 2:]]),
        "supervision": supervised.xyxy,
    }
    for form, values in found.items():
        np.testing.assert_allclose(values, boxes, atol=0.011, err_msg=form)
    for form in ([r["name"] for r in as_json], [r["name"] for r in as_csv], list(table["name"]),
                 [o.name for o in voc.objects], list(supervised["class_name"]),
                 [r["category_name"] for r in coco]):  # fmt: skip
        assert form == names
    assert [detections.categories.names[int(n)] for n in yolo[:, 0]] == names
    assert {row["image_id"] for row in coco} == {9}
    assert voc.size == (64, 60) and as_csv[0]["file"] == str(file)


def test_segmentations_say_the_same_in_every_form(models, file, tmp_path):
    result = models["tiny_segmentation"].predict(file)
    regions = list(result)
    assert sum(region.share for region in regions) == pytest.approx(1)
    table, coco, supervised = result.to_pandas(), result.to_coco(), result.to_supervision()
    assert list(table["pixels"]) == [r.pixels for r in regions] == [row["area"] for row in coco]
    for region, mask in zip(regions, supervised.mask, strict=True):
        assert (result[region.name] == mask).all() and mask.sum() == region.pixels
    with pytest.raises(KeyError, match="has no class 'sea', it has background, "):
        result["sea"]
    result.save(tmp_path / "a.csv")
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 1 + len(regions)


@pytest.mark.parametrize("kind", KINDS)
def test_results_are_pictures(kind, models, file, tmp_path):
    result = models[kind].predict(file)
    with open_image("shown", content=result._repr_png_()) as shown:
        assert shown.size == (64, 60)
    for name in ("a.png", "deep/a.jpg", "a.webp"):
        assert read_image(result.save(tmp_path / name)).shape == (60, 64, 3)
    with pytest.raises(ValueError, match=r"the suffix of .*a\.pgn must be one of .*'\.png'"):
        result.save(tmp_path / "a.pgn")


def test_large_images_are_drawn_smaller(models, tiny_scenes, tmp_path):
    pixels = read_image(sorted((tiny_scenes / "val").iterdir())[0])
    large = np.asarray(Image.fromarray(pixels).resize((1200, 1200)))
    Image.fromarray(large).save(tmp_path / "large.png")
    for model in models.values():
        result = model.predict(tmp_path / "large.png")
        assert result.size == (1200, 1200)
        assert result.plot().shape == (1200, 1200, 3)  # whatever size the model read it at
        assert result.plot(largest=400).shape == (300, 300, 3)
        assert model.predict(large).plot(largest=400).shape == (300, 300, 3)


def test_legends_list_classes_where_there_is_room():
    gray = np.full((300, 300, 3), 128, np.uint8)
    gray[:150] = np.random.default_rng(0).integers(0, 256, (150, 300, 3))
    colors = {f"class {n}": (0, 158, 115) for n in range(30)}
    drawn = draw_legend(gray, {"class 1": "3"}, colors)
    assert (drawn[:150] == gray[:150]).all() and (drawn == colors["class 1"]).all(2).any()
    many = draw_legend(gray, {f"class {n}": "1" for n in range(30)}, colors)
    assert (many == colors["class 1"]).all(2).any()
    assert (draw_legend(gray[:40, :40], {"class 1": "3"}, colors) == gray[:40, :40]).all()
    assert draw_legend(gray, {}, colors) is gray


def test_masks_and_keypoints_go_into_every_form(detections, tmp_path):
    from densenet_backbones.data.categories import Categories
    from densenet_backbones.data.masks.run_lengths import encode_masks
    from densenet_backbones.inference.results import formats

    square = torch.zeros(1, 40, 50, dtype=torch.uint8)
    square[0, 10:20, 5:15] = 1
    result = Detections(
        boxes=torch.tensor([[5.0, 10.0, 15.0, 20.0]]),
        labels=torch.tensor([1]),
        scores=torch.tensor([0.5]),
        names=["dog"],
        masks=encode_masks(square),
        keypoints=torch.tensor([[[7.0, 12.0, 1.0]]]),
        keypoint_scores=torch.tensor([[3.0]]),
        categories=Categories(("dog",), (18,), ("nose",)),
        image=convert_image(np.zeros((40, 50, 3), np.uint8)),
    )
    (row,) = result.to_coco()
    assert row["category_id"] == 18 and row["keypoints"] == [7, 12, 1]
    assert row["segmentation"] == result.masks[0]
    assert result.to_supervision().mask.sum() == 100
    labelme = formats.to_labelme(result, "a.png")
    assert [shape["shape_type"] for shape in labelme["shapes"]] == ["polygon", "point"]
    assert [shape["label"] for shape in labelme["shapes"]] == ["dog", "nose"]
    words = [float(word) for word in formats.format_yolo(result).split()]
    outline = np.reshape(words[1:-3], (-1, 2)) * [50, 40]
    extent = [outline.min(0), outline.max(0)]  # the middles of the outermost pixels
    np.testing.assert_allclose(extent, [[5.5, 10.5], [14.5, 19.5]], atol=1e-4)
    assert words[-3:] == [0.14, 0.3, 2]
    assert len(np.unique(result.plot().reshape(-1, 3), axis=0)) > 3


def test_the_best_score_of_the_training_is_the_default(tiny_run):
    best = json.loads((tiny_run / "evaluation/metrics.json").read_text())["best_score"]
    detector = load(tiny_run / "model.safetensors")
    assert detector.score_thresh == detector.spec.best_score == best["score"]
    assert 0 < best["f1"] <= 1
    assert load(tiny_run / "checkpoints/best.ckpt").score_thresh == 0.5  # not evaluated yet
