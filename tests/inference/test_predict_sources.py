"""Inputs and outputs of `predict`: videos, addresses, lists, patterns; every format; tiles."""

import csv
import http.server
import json
import shutil
import threading
import time
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

import av
import numpy as np
import pytest
import tifffile
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO

from densenet_backbones.data.faults import DataError
from densenet_backbones.data.images import read_image
from densenet_backbones.data.readers.voc.xml_file import read_voc_annotation
from densenet_backbones.inference import predict
from densenet_backbones.inference.inputs import clips, downloads, image_windows
from densenet_backbones.inference.inputs.clips import VideoWriter, open_clip
from densenet_backbones.inference.inputs.image_windows import ImageWindows
from densenet_backbones.inference.inputs.sources import list_sources
from densenet_backbones.inference.loading import load
from densenet_backbones.inference.merging.detection_tiles import _merge, detect_in_tiles
from densenet_backbones.inference.merging.tiling import Tiling
from densenet_backbones.inference.results.savers import SAVERS


@pytest.fixture(scope="module")
def images(tiny_scenes):
    return sorted((tiny_scenes / "val").iterdir())


@pytest.fixture(scope="module")
def clip(images, tmp_path_factory):
    """A video of five images, of an odd height."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    writer = VideoWriter(path, Fraction(5))
    for image in images[:5]:
        writer.add(read_image(image)[:63])
    writer.close()
    return path


class Server(http.server.BaseHTTPRequestHandler):
    """Serves pictures, and what pictures must not be."""

    files: ClassVar[dict[str, bytes]] = {}

    def do_GET(self):
        name = self.path.partition("?")[0].lstrip("/")
        if name == "slow":
            for _ in range(50):
                self.wfile.write(b"HTTP/1.0 200 OK\r\nA: b\r\n"[:1])
                time.sleep(0.1)
            return
        status = 302 if name in ("away", "round") else 200 if name in self.files else 404
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "ftp://x.org/a.jpg" if name == "away" else "/round")
        self.end_headers()
        if name == "endless":
            while True:
                self.wfile.write(bytes(1 << 16))
        self.wfile.write(self.files.get(name, b""))

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def address(images, clip):
    Server.files = {"a.jpg": images[0].read_bytes(), "clip.mp4": clip.read_bytes(), "endless": b""}
    Server.files["page.png"] = b"<html>not found</html>"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def run(model, out, *words):
    """Runs the command, and returns what predictions.json holds."""
    options = ("--out", out, "--device", "cpu", "--score", "0.05")
    predict.main([str(word) for word in (model, *words, *options)])
    file = out / "predictions.json"
    return json.loads(file.read_text()) if file.exists() else None


# -- what is named -----------------------------------------------------------------------------


def test_words_name_files_in_many_ways(images, tmp_path):
    for name in ("a.png", "b/c.png", "b/.hidden.png", "b/d/e.jpg", "b/note.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name, format="PNG")
    (tmp_path / "list.txt").write_text("# mine\n\na.png\nb/c.png\nhttp://x.org/f.jpg?size=1\n")

    def names(*words, **options):
        found = list_sources([str(word) for word in words], **options)
        return [Path(source.name).name for source in found]

    assert names(tmp_path, recursive=True) == ["a.png", "c.png", "e.jpg"]
    assert names(tmp_path) == names(tmp_path / "*.png") == ["a.png"]
    assert names(tmp_path / "**/*.*g") == ["a.png", "c.png", "e.jpg"]
    listed = ["a.png", "c.png", "f.jpg?size=1"]
    assert names(tmp_path / "list.txt") == names(f"@{tmp_path / 'list.txt'}") == listed
    (tmp_path / "b/pattern.txt").write_text("*.png\n")  # of the folder of the list
    assert names(tmp_path / "b/pattern.txt") == ["c.png"]
    (tmp_path / "b [1]").mkdir()
    shutil.copy(tmp_path / "a.png", tmp_path / "b [1]/g.png")
    assert names(tmp_path / "b [1]/*.png") == ["g.png"] and names(tmp_path / "[a].png") == ["a.png"]
    (url,) = list_sources(["http://x.org/f.jpg?size=1"])
    assert (url.kind, url.stem, url.path) == ("image", "f", None)
    assert [s.kind for s in list_sources(["camera", "camera:2", "http://x.org/v.mp4"])] == [
        *("clip", "clip", "clip")
    ]
    (tmp_path / "circle.txt").write_text("circle.txt\n")
    (tmp_path / "empty.txt").write_text("\n# none\n")
    (tmp_path / "lost.txt").write_text("\na.png\n*.bmp\n")
    (tmp_path / "nul.txt").write_bytes(b"a\0*.png\n")
    for word, message in (
        (tmp_path / "lost.txt", r"lost\.txt: line 3: \*\.bmp: no file has a name like this"),
        (tmp_path / "nul.txt", r"nul\.txt: line 1: "),
        (tmp_path / "*.bmp", "no file has a name like this"),
        (tmp_path / "circle.txt", "names another list, circle.txt"),
        (tmp_path / "empty.txt", "the list is empty"),
        (f"@{tmp_path / 'none'}", "there is no such list"),
    ):
        with pytest.raises(DataError, match=message):
            list_sources([str(word)])
    (tmp_path / "f").mkdir()
    with pytest.raises(DataError, match=r"no images here; .* --recursive for the folders in it"):
        list_sources([str(tmp_path / "f")])


# -- videos and addresses ----------------------------------------------------------------------


def test_frames_of_videos_and_animations_are_predicted_as_images(tiny_run, clip, tmp_path):
    with open_clip(str(clip)) as opened:
        assert (opened.rate, opened.length) == (5, 5)
        frames = list(opened.frames)
    assert [frame.shape for frame in frames] == [(64, 64, 3)] * 5
    pictures = [Image.fromarray(frame).quantize(64) for frame in frames]
    moving = tmp_path / "moving.gif"
    pictures[0].save(moving, save_all=True, append_images=pictures[1:], duration=200)
    rows = run(tiny_run, tmp_path / "out", clip, moving, "--stride", "2")
    assert [row["frame"] for row in rows] == [0, 2, 4] * 2
    detector = load(tiny_run)
    shown = frames[::2] + [np.asarray(picture.convert("RGB")) for picture in pictures[::2]]
    for row, frame in zip(rows, shown, strict=True):
        expected = detector.predict(frame, 0.05)
        assert len(row["detections"]) == len(expected) > 0
        boxes = [found["box"] for found in row["detections"]]
        np.testing.assert_allclose(np.sort(boxes, 0), np.sort(expected.boxes, 0), atol=0.02)
    for name in ("clip", "moving"):
        with open_clip(str(tmp_path / f"out/{name}.mp4")) as drawn:
            assert drawn.rate == Fraction(5, 2)
            first, *others = drawn.frames
        assert len(others) == 2 and np.abs(first.astype(int) - frames[0]).mean() > 2


def test_a_video_s_title_may_be_in_any_encoding(images, tmp_path):
    path = tmp_path / "titled.mp4"
    writer = VideoWriter(path, Fraction(5))
    writer._container.metadata["title"] = "Straße"
    writer.add(read_image(images[0]))
    writer.close()
    content = path.read_bytes()
    assert "Straße".encode() in content
    path.write_bytes(content.replace("Straße".encode(), "Straße ".encode("latin-1")))
    with open_clip(str(path)) as opened:
        assert len(list(opened.frames)) == 1


def test_segmenters_take_videos_too(tiny_segmentation, clip, tmp_path):
    rows = run(tiny_segmentation, tmp_path, clip, "--stride", "4")
    assert [row["masks"] for row in rows] == [
        [str(tmp_path / f"clip_{frame:06}_mask.png")] for frame in (0, 4)
    ]
    assert all(read_image(row["masks"][0]).shape == (64, 64, 3) for row in rows)


def test_broken_videos_cost_no_other_its_result(tiny_run, clip, images, tmp_path, refused_command):
    whole = clip.read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    files = {"cut": whole[:-900], "none": b"", "text": b"no video", "list": playlist}
    for name, content in files.items():
        (tmp_path / f"{name}.mp4").write_bytes(content)
    words = [tmp_path / f"{name}.mp4" for name in files]
    with pytest.raises(SystemExit):
        run(tiny_run, tmp_path / "out", *words, images[0])
    rows = json.loads((tmp_path / "out/predictions.json").read_text())
    assert rows[-1]["file"] == str(images[0])
    with pytest.raises(DataError, match="cannot be read as a video"), open_clip(str(words[3])):
        pass


def test_a_camera_is_read_until_it_ends(tiny_run, tmp_path, monkeypatch):
    """FFmpeg's test picture stands for a camera, which no test has; Ctrl-C ends it."""
    monkeypatch.setattr(clips.sys, "platform", "test")
    place = "testsrc=size=64x48:rate=5:duration=2"
    monkeypatch.setitem(clips._CAMERAS, "test", ("lavfi", place))
    add = VideoWriter.add
    frames = []

    def stop(self, picture):
        add(self, picture)
        frames.append(picture)
        if len(frames) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(VideoWriter, "add", stop)
    with pytest.raises(SystemExit) as end:
        run(tiny_run, tmp_path, "camera", "--batch-size", "1")
    assert end.value.code == 130
    with open_clip(str(tmp_path / "camera-0.mp4")) as recorded:
        assert len(list(recorded.frames)) == 3


def test_a_camera_that_is_not_there_is_no_broken_file():
    with (
        pytest.raises(DataError, match=r"camera:99: .* connect it"),
        open_clip("camera:99", camera=99),
    ):
        pass


def test_a_word_that_is_no_model_is_answered(images, tmp_path, refused_command):
    for name in ("model.bin", "model.xml", "model.pt2"):
        (tmp_path / name).touch()
    for word, answer in (
        (images[0], "is no model; give the model first"),
        (tmp_path / "model.bin", "give the .xml beside it"),
        (tmp_path / "model.pt2", "export it as ONNX"),
    ):
        code, line = refused_command(predict.main, word, images[0], "--out", tmp_path / "out")
        assert code == 1 and answer in line and str(word) in line


def test_a_missing_video_library_is_one_sentence(clip, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    message = r"videos need av: pip install 'densenet-backbones\[video"
    with pytest.raises(DataError, match=message), open_clip(str(clip)):
        pass


def test_upright_videos_are_read_upright(clip, tmp_path):
    """Phones write a note beside pictures that lie on their side."""
    source = av.open(str(clip))
    with av.open(str(tmp_path / "turned.mp4"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    with open_clip(str(tmp_path / "turned.mp4")) as opened:
        plain = next(opened.frames)
    # ISO 14496-12, 8.3.2: the matrix of the track header, 16.16; here a quarter to the right.
    content = bytearray((tmp_path / "turned.mp4").read_bytes())
    place = content.index(b"tkhd") + 4 + 40
    matrix = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, 64 << 16, 0, 1 << 30], ">i4")
    content[place : place + 36] = matrix.tobytes()
    (tmp_path / "turned.mp4").write_bytes(content)
    with open_clip(str(tmp_path / "turned.mp4")) as opened:
        assert (next(opened.frames) == np.rot90(plain, -1)).all()


def test_addresses_are_files(tiny_run, images, clip, address, tmp_path):
    rows = run(tiny_run, tmp_path / "a", f"{address}/a.jpg?x=1", f"{address}/clip.mp4")
    local = run(tiny_run, tmp_path / "b", images[0], clip)
    assert [row["detections"] for row in rows] == [row["detections"] for row in local]
    assert rows[0]["file"] == f"{address}/a.jpg?x=1"
    assert {f.name for f in (tmp_path / "a").iterdir()} == {"a.png", "clip.mp4", "predictions.json"}
    result = load(tiny_run).predict(f"{address}/a.jpg", 0.05)
    assert len(result) == len(local[0]["detections"]) and result.plot().shape == (64, 64, 3)


def test_hostile_addresses_are_one_sentence(address, monkeypatch, tiny_run):
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD", 1 << 20)
    monkeypatch.setattr(downloads, "MAX_DOWNLOAD_SECONDS", 1.5)
    detector = load(tiny_run)
    for name, message in (
        ("none.jpg", "Not Found"),
        ("endless", "more than 1 MiB"),
        ("slow", "cannot be fetched"),
        ("away", "it leads to ftp://x.org/a.jpg"),
        ("round", "cannot be fetched"),
        ("page.png", "page.png: cannot be read as an image"),
    ):
        start = time.monotonic()
        with pytest.raises(DataError, match=message) as caught:
            detector.predict(f"{address}/{name}")
        assert str(caught.value).startswith(f"{address}/{name}: ") and "\n" not in str(caught.value)
        assert time.monotonic() - start < 10
    with pytest.raises(DataError, match="refused"):
        detector.predict("http://127.0.0.1:1/a.jpg")


# -- formats -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(tiny_run, images, tmp_path_factory):
    out = tmp_path_factory.mktemp("saved")
    run(tiny_run, out, images[0], images[1], "--save", *SAVERS)
    return out


def test_every_format_holds_the_same_boxes(saved, images, tiny_run):
    rows = json.loads((saved / "predictions.json").read_text())
    lines = list(csv.DictReader((saved / "predictions.csv").open()))
    coco = COCO(str(saved / "coco.json"))
    classes = yaml.safe_load((saved / "yolo/data.yaml").read_text())["names"]
    for number, (row, image) in enumerate(zip(rows, images, strict=False), start=1):
        boxes = np.array([found["box"] for found in row["detections"]])
        names = [found["name"] for found in row["detections"]]
        of_file = [line for line in lines if line["file"] == str(image)]
        entries = coco.loadAnns(coco.getAnnIds(number))
        voc = read_voc_annotation(saved / f"voc/{image.stem}.xml").objects
        yolo = np.loadtxt(saved / f"yolo/labels/{image.stem}.txt", ndmin=2)
        labelme = json.loads((saved / f"labelme/{image.stem}.json").read_text())
        beside = saved / "labelme" / labelme["imagePath"]
        assert beside.resolve() == image.resolve() and len(boxes) > 0
        corners = np.array([entry["bbox"] for entry in entries])
        corners[:, 2:] += corners[:, :2]
        middles, sides = yolo[:, 1:3] * 64, yolo[:, 3:] * 64
        for form, found, called in (
            ("csv", [[float(line[c]) for c in ("x1", "y1", "x2", "y2")] for line in of_file],
             [line["name"] for line in of_file]),
            ("coco", corners, [coco.cats[entry["category_id"]]["name"] for entry in entries]),
            ("voc", np.array([o.corners for o in voc]) - [1, 1, 0, 0], [o.name for o in voc]),
            ("yolo", np.hstack([middles - sides / 2, middles + sides / 2]),
             [classes[int(label)] for label in yolo[:, 0]]),
            ("labelme", np.reshape([s["points"] for s in labelme["shapes"]], (-1, 4)),
             [s["label"] for s in labelme["shapes"]]),
        ):  # fmt: skip
            np.testing.assert_allclose(found, boxes, atol=0.011, err_msg=form)
            assert called == names, form
        pixels = read_image(image)
        exact = np.reshape([shape["points"] for shape in labelme["shapes"]], (-1, 4))
        for which, (name, box) in enumerate(zip(names, exact, strict=True), start=1):
            crop = read_image(saved / f"crops/{name}/{image.stem}_{which}.png")
            left, top = np.floor(box[:2]).astype(int)
            assert (crop == pixels[top : top + crop.shape[0], left : left + crop.shape[1]]).all()
            assert np.abs(crop.shape[1::-1] - (box[2:] - box[:2])).max() <= 2


def test_chosen_classes_alone_are_given(tiny_run, images, tmp_path, refused_command, capsys):
    (row,) = run(tiny_run, tmp_path, images[0], "--no-pictures")
    name = row["detections"][0]["name"]
    (chosen,) = run(tiny_run, tmp_path, images[0], "--classes", name, "--no-pictures")
    assert chosen["detections"] == [d for d in row["detections"] if d["name"] == name]
    listed = ",".join(load(tiny_run).categories.names)
    assert run(tiny_run, tmp_path, images[0], "--classes", listed, "--no-pictures") == [row]
    code, line = refused_command(
        predict.main, tiny_run, images[0], "--classes", "circel", "--out", tmp_path
    )
    assert code == 1 and "--classes must be one of" in line and "did you mean 'circle'?" in line


def test_segmenters_refuse_what_is_for_detectors(
    tiny_segmentation, images, tmp_path, refused_command
):
    for words, message in (
        (("--save", "json", "voc"), "--save voc is for detectors; a segmenter has json, coco, csv"),
        (("--classes", "circle"), "--classes is for detectors"),
    ):
        argv = (tiny_segmentation, images[0], "--out", tmp_path, *words)
        code, line = refused_command(predict.main, *argv)
        assert code == 1 and message in line
    run(tiny_segmentation, tmp_path, images[0], "--save", "coco", "csv")
    coco = COCO(str(tmp_path / "coco.json"))
    covered = sum(coco.annToMask(entry).sum() for entry in coco.dataset["annotations"])
    assert covered == 64 * 64


def test_the_stored_score_is_used_and_said(tiny_run, images, tmp_path, capsys):
    best = load(tiny_run).spec.best_score
    predict.main([str(tiny_run), str(images[0]), "--out", str(tmp_path), "--device", "cpu"])
    assert f"score from {best:g} on (the best on the evaluated data; " in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "predictions.json").read_text())
    assert all(found["score"] >= round(best, 4) for found in row["detections"])


# -- tiles -------------------------------------------------------------------------------------


def test_one_tile_for_all_is_no_tiling(tiny_run, images):
    detector = load(tiny_run)
    for image in images[:3]:
        whole = detector.predict(image, 0.05)
        tiled = detect_in_tiles(detector, ImageWindows(image), Tiling(64), 0.05)
        assert torch.equal(whole.boxes, tiled.boxes) and torch.equal(whole.scores, tiled.scores)
        assert whole.names == tiled.names and len(whole) > 0
        assert (whole.plot() == tiled.plot()).all()


def test_tiles_see_each_part_as_an_image_of_its_own(tiny_run, images, tmp_path):
    """Four images side by side, cut where they meet: each gives what it gives alone."""
    detector = load(tiny_run)
    parts = [read_image(image) for image in images[:4]]
    page = np.vstack([np.hstack(parts[:2]), np.hstack(parts[2:])])
    tiled = detect_in_tiles(detector, ImageWindows(page), Tiling(64, 0), 0.05, batch_size=1)
    alone = [detector.predict(part, 0.05) for part in parts]
    shifts = [[0, 0] * 2, [64, 0] * 2, [0, 64] * 2, [64, 64] * 2]
    expected = torch.cat([d.boxes + torch.tensor(s) for d, s in zip(alone, shifts, strict=True)])
    rows = {tuple(box) for box in expected.round().int().tolist()}
    found = [tuple(box) for box in tiled.boxes.round().int().tolist()]
    assert set(found) <= rows and len(found) > 0.8 * len(rows)
    Image.fromarray(page).save(tmp_path / "page.png")
    (row,) = run(
        tiny_run, tmp_path / "out", tmp_path / "page.png", "--tile", "64", "--overlap", "0"
    )
    assert len(row["detections"]) == len(found)
    assert read_image(row["picture"]).shape == (128, 128, 3)


def test_objects_that_tiles_cut_are_given_once():
    def part(box, score, cut, label=1):
        return {
            "boxes": torch.tensor([box]),
            "scores": torch.tensor([score]),
            "labels": torch.tensor([label]),
            "cut": torch.tensor([cut]),
        }

    whole, piece = part([0.0, 0, 40, 40], 0.6, False), part([0.0, 0, 40, 10], 0.9, True)
    assert _merge([whole, piece], 0.5)["scores"].tolist() == pytest.approx([0.6])
    inner = part([0.0, 0, 40, 10], 0.9, False)  # a small object of its own
    other = part([0.0, 0, 40, 10], 0.9, True, label=2)
    assert len(_merge([whole, inner], 0.5)["scores"]) == 2
    assert len(_merge([whole, other], 0.5)["scores"]) == 2


@pytest.mark.parametrize("tile", [None, (32, 48)])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_compressed_files_too_large_to_decode_are_read_in_parts(tile, kind, tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    values = pixels.astype(np.uint16) * 257 if kind is np.uint16 else pixels
    rows = {"rowsperstrip": 7} if tile is None else {"tile": tile}
    path = tmp_path / "large.tif"
    options = {"photometric": "rgb", "bigtiff": True, "compression": "deflate"}
    tifffile.imwrite(path, values, **options, **rows)
    assert (read_image(path) == pixels).all()
    monkeypatch.setattr(image_windows, "MAX_PIXELS", 1000)
    source = ImageWindows(path)
    assert source.in_parts and source.size == (90, 130)
    for window in ((0, 0, 90, 130), (5, 47, 33, 100), (89, 129, 90, 130)):
        top, left, bottom, right = window
        assert (source.read(window) == pixels[top:bottom, left:right]).all()


def test_a_compression_that_needs_another_package_says_so(tmp_path, monkeypatch):
    Image.new("RGB", (200, 200)).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert read_image(tmp_path / "a.tif").shape == (200, 200, 3)  # Pillow needs none
    monkeypatch.setattr(image_windows, "MAX_PIXELS", 1000)
    monkeypatch.setitem(__import__("sys").modules, "imagecodecs", None)
    with pytest.raises(DataError, match=r"a\.tif: piece 0 cannot .*; pip install imagecodecs"):
        ImageWindows(tmp_path / "a.tif").read((0, 0, 9, 9))
