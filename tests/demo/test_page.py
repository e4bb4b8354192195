"""The functions behind the page: models run once a file, and faults are sentences."""

import asyncio
import json
import socket
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from page_models import NASTY, load_models, save_classifier, save_models, save_noise

from densenet_backbones.data.images import read_image
from densenet_backbones.data.mask_samples import IGNORED
from densenet_backbones.demo import answers, command, videos
from densenet_backbones.demo.answers import find_in_picture, select
from densenet_backbones.demo.guard import Guard
from densenet_backbones.demo.page import Page
from densenet_backbones.inference.inputs.clips import VideoWriter, open_clip

pytest.importorskip("gradio", reason="the page needs Gradio")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return save_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def models(files):
    return load_models(files)


@pytest.fixture
def page(models, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "page"))
    return Page(models, tmp_path / "page")


@pytest.fixture
def runs(models, monkeypatch):
    """Number of times that each model ran."""
    counts = [0] * len(models)

    def count(number, predict):
        def counted(*args, **kwargs):
            counts[number] += 1
            return predict(*args, **kwargs)

        return counted

    for number, model in enumerate(models):
        predict = count(number, model.predictor.predict)
        monkeypatch.setattr(model.predictor, "predict", predict)
    return counts


def sort_out(updates, models):
    """Trouble, and of each model the values of its parts."""
    trouble, *parts = updates
    assert len(parts) == 5 * len(models)
    columns = [parts[5 * n : 5 * n + 5] for n in range(len(models))]
    return trouble.value, columns


def test_a_score_and_classes_choose_and_run_no_model(page, models, runs, tmp_path):
    picture = save_noise(tmp_path / "a b.png")
    answer, *updates = page.look(str(picture), 0.0, [])
    assert runs == [1, 1]
    trouble, columns = sort_out(updates, models)
    assert trouble == ""
    for model, (shown, video, found, drawn, described) in zip(models, columns, strict=True):
        assert shown.visible and not video.visible and model.title in drawn.value["path"]
        # Small pictures are enlarged, so that names can be read.
        assert max(read_image(drawn.value["path"]).shape) > 500
        content = json.loads(Path(described.value["path"]).read_text(encoding="utf-8"))
        assert content["file"] == "a b.png" and content["width"] == 96
        assert content["detections" if model.title == "boxes" else "classes"]
        assert "<img" not in found and "&lt;img" in found

    def count(score, classes):
        _, columns = sort_out(page.redraw(answer, score, classes), models)
        content = [json.loads(Path(c[4].value["path"]).read_text("utf-8")) for c in columns]
        pixels = sum(entry["pixels"] for entry in content[1]["classes"])
        return len(content[0]["detections"]), pixels

    everything, some, none = count(0.0, []), count(0.4, []), count(1.0, [])
    assert everything[0] > some[0] > none[0] == 0
    assert everything[1] == 96 * 64 > some[1] > none[1]
    nasty, others = count(0.0, [NASTY]), count(0.0, ["dog", "ground", "road"])
    assert [a + b for a, b in zip(nasty, others, strict=True)] == list(everything)
    assert runs == [1, 1]


def test_select_leaves_pixels_as_they_are(models, tmp_path):
    whole = find_in_picture(models, save_noise(tmp_path / "a.png")).frames[0][1]
    part = select(whole, 0.4, ["road", NASTY])
    hidden = (whole.scores < 0.4) | (whole.labels == 0)
    assert hidden.any() and not hidden.all()
    np.testing.assert_array_equal(part.labels, np.where(hidden, IGNORED, whole.labels))


def test_a_classifier_shows_its_most_probable_classes(tmp_path, clip):
    (model,) = load_models([save_classifier(tmp_path)])
    page = Page([model], tmp_path / "page")
    picture = save_noise(tmp_path / "a.png")
    expected = model.predictor.predict(picture)
    answer, *updates = page.look(str(picture), model.default_score, [])

    def read(updates):
        trouble, ((_, _, found, drawn, described),) = sort_out(updates, [model])
        assert trouble == "" and max(read_image(drawn.value["path"]).shape) > 500
        return found, json.loads(Path(described.value["path"]).read_text("utf-8"))["classes"]

    found, classes = read(updates)
    assert [(row["name"], row["label"]) for row in classes] == [row[:2] for row in expected.top()]
    assert len(classes) == 5 and f"{expected.score:.1%} {expected.name}" in found.replace(
        "&lt;", "<"
    ).replace("&gt;", ">")
    _, some = read(page.redraw(answer, 0.0, ["owl", "cow"]))
    assert {row["name"]: row["label"] for row in some} == {"cow": 3, "owl": 5}
    _, none = read(page.redraw(answer, 1.0, []))
    assert none == []
    _, *updates = page.look(str(clip), 0.0, [])
    trouble, ((_, video, found, *_),) = sort_out(updates, [model])
    assert trouble == "" and video.visible and found.startswith("<p>8 frames: ")


@pytest.fixture
def clip(tmp_path):
    writer = VideoWriter(tmp_path / "clip.mp4", Fraction(10))
    for shade in range(8):
        writer.add(np.full((48, 64, 3), 30 * shade, np.uint8))
    writer.close()
    return tmp_path / "clip.mp4"


def test_a_video_is_looked_at_once(page, models, runs, clip, monkeypatch):
    monkeypatch.setattr(videos, "MOST_FRAMES", 2)  # so that every fourth frame is looked at
    shares = []
    answer, *updates = page.look(str(clip), 0.0, [], shares.append)
    page.redraw(answer, 0.9, [])
    assert runs == [2, 2] and shares == [0.5, 1.0]
    trouble, columns = sort_out(updates, models)
    assert trouble == ""
    for shown, video, found, drawn, described in columns:
        assert video.visible and not shown.visible and found.startswith("<p>2 frames: ")
        with open_clip(drawn.value["path"]) as written:
            assert written.rate == 2.5 and len(list(written.frames)) == 2
        frames = json.loads(Path(described.value["path"]).read_text("utf-8"))["frames"]
        assert [(f["frame"], f["seconds"]) for f in frames] == [(0, 0.0), (4, 0.4)]


def test_troubles_are_a_sentence_on_the_page(page, models, clip, tmp_path, monkeypatch):
    monkeypatch.setattr(answers, "MOST_PIXELS", 2_000_000)
    monkeypatch.setattr(videos, "LONGEST", 0.5)
    bomb, damaged, text = (tmp_path / name for name in ("bomb.png", "<b>.jpg", "list.txt"))
    save_noise(bomb, (1500, 1400))
    damaged.write_bytes(save_noise(tmp_path / "c.jpg").read_bytes()[:300])
    text.write_text("/etc/passwd\nhttp://127.0.0.1/")
    (tmp_path / "empty.mp4").write_bytes(b"")
    sentences = {
        bomb: "bomb.png: has 1500x1400 pixels, this page takes up to 2 million",
        damaged: "&lt;b&gt;.jpg: cannot be read as an image",
        text: "list.txt: cannot be read as an image",
        clip: "clip.mp4: is 1 seconds long, this page takes videos up to 0.5 seconds",
        tmp_path / "empty.mp4": "empty.mp4: cannot be read as a video",
        tmp_path / "gone.png": "gone.png: ",
    }
    for file, sentence in sentences.items():
        answer, *updates = page.look(str(file), 0.5, [])
        trouble, columns = sort_out(updates, models)
        assert answer is None and trouble.startswith(f"<p>{sentence}"), trouble
        assert str(tmp_path) not in trouble and "<b>" not in trouble
        assert all(column[3].value is None for column in columns)


def test_a_file_that_is_taken_away_leaves_nothing(page, models):
    answer, *updates = page.look(None, 0.5, [])
    assert answer is None and sort_out(updates, models)[0] == ""
    assert sort_out(page.redraw(None, 0.5, []), models)[0] == ""


# -- the guard in front of it --------------------------------------------------------------------


def ask(path="/", host="127.0.0.1:7860", kind="http", hosts=("127.0.0.1",)):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": kind, "path": path, "headers": [(b"Host", host.encode())]}
    asyncio.run(Guard(app, hosts)(scope, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_the_guard_keeps_others_out():
    status, headers = ask()
    assert status == 200 and b"default-src 'self'" in headers[b"content-security-policy"]
    assert ask(host="evil.example:7860")[0] == 403
    assert ask(host="evil.example:7860", hosts=())[0] == 200, "with --host any name is right"
    assert ask(path="/gradio_api/file=http://10.0.0.1/x")[0] == 403
    assert ask(kind="websocket")[0] == 403


# -- the command ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{0}", "{0}", "{0}"], "one model or two side by side, got 3"),
        (["{0}", "--port", "70000"], "--port must lie in [1, 65535], got 70000"),
        (["{0}", "--device", "tpu9"], "device tpu9"),
        (["gone.safetensors"], "gone.safetensors: there is no such file"),
        (["{0}", "--port", "{port}"], "--port {port}: cannot be served on"),
    ],
)
def test_pages_that_are_refused(words, sentence, files, refused_command):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        words = [word.format(files[0], port=port) for word in words]
        code, line = refused_command(command.main, *words)
    assert code == 1 and sentence.format(port=port) in line


def test_without_gradio_the_command_says_so(files, refused_command, monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert "pip install gradio" in refused_command(command.main, files[0])[1]
