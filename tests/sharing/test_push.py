"""A model goes to a stand-in of the Hub and comes back bit for bit; refusals are one sentence."""

import contextlib
import json
import shutil

import pytest
import safetensors.torch
import torch
import yaml
from hub_stand_in import running_hub
from huggingface_hub import constants
from page_models import save_classifier
from PIL import Image
from tiny_runs import DETECTOR_ARGS, files_below

from densenet_backbones import load
from densenet_backbones.checkpoints import CheckpointError, hub, read_state_dict
from densenet_backbones.data.categories import Categories
from densenet_backbones.inference import predict
from densenet_backbones.inference.detector import DetectorSpec
from densenet_backbones.inference.model_file import save_model
from densenet_backbones.sharing import push
from densenet_backbones.sharing.run_record import read_run

NASTY = "<b>`|x`\n--- [a](b)"
FILES = {"README.md", "model.safetensors", "predictions.png", "training_curves.png"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder as a training leaves it, of an untrained detector."""
    folder = tmp_path_factory.mktemp("runs") / "mine"
    torch.manual_seed(0)
    spec = DetectorSpec(
        "dsod_tiny", DETECTOR_ARGS, Categories.from_names(["dog", NASTY]), best_score=0.3
    )
    save_model(folder / "model.safetensors", spec, spec.build())
    rows = [{"name": name, "objects": 3, "ap": 0.5, "ap50": None} for name in ("dog", NASTY)]
    metrics = {"coco": {"iou_type": "bbox", "images": 7, "numbers": {"AP": 0.5}, "classes": rows}}
    config = {
        "data": {"root": "/home/me/secret place/pets", "batch_size": 4},
        "init_from": "/home/me/other.safetensors",
        "trainer": {"max_epochs": 2},
        "model": {"optimizer": {"name": "adamw", "lr": 0.01}},
    }
    for name in ("evaluation", "pictures"):
        (folder / name).mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "evaluation/metrics.json").write_text(json.dumps(metrics))
    (folder / "environment.json").write_text('[{"packages": {"torch": "2.14"}}]')
    for name in ("evaluation/predictions.png", "pictures/training_curves.png"):
        Image.new("RGB", (8, 8)).save(folder / name)
    return folder


@pytest.fixture
def server(tmp_path):
    with running_hub(tmp_path / "cache") as server:
        yield server


def test_a_model_goes_to_the_hub_and_comes_back(run, server, tmp_path, capsys):
    model = run / "model.safetensors"
    push.main([str(model), "hf-hub:pets/small", "--private", "--license", "mit"])
    assert "hf-hub:pets/small" in capsys.readouterr().out
    assert server.repos["pets/small"]["private"]
    ((first, sent),) = server.repos["pets/small"]["commits"].items()
    assert set(sent) == FILES and sent["model.safetensors"] == model.read_bytes()

    image = tmp_path / "a.png"
    Image.effect_noise((64, 64), 90).convert("RGB").save(image)
    ours, theirs = load(model), load("hf-hub:pets/small")
    both = [m.predict(image, 0.0) for m in (ours, theirs)]
    assert len(both[0]) and torch.equal(both[0].boxes, both[1].boxes)
    assert torch.equal(both[0].scores, both[1].scores)

    # Another commit, of other weights: the name alone is the newest, a commit what it was.
    changed = {name: value * 2 for name, value in read_state_dict(model).items()}
    server.commit("pets/small", {"model.safetensors": safetensors.torch.save(changed)})
    asked = len(server.requests)
    pinned = read_state_dict(f"hf-hub:pets/small@{first}")
    assert len(server.requests) == asked, "what a commit holds is known already"
    newest = read_state_dict("hf-hub:pets/small")
    assert all(torch.equal(value, newest[name]) for name, value in changed.items())
    assert all(torch.equal(value, pinned[name]) for name, value in read_state_dict(model).items())
    # One file is asked for, whatever else lies there.
    got = {path for method, path in server.requests if method in ("GET", "HEAD")}
    assert {path.rpartition("/")[2] for path in got if "/resolve/" in path} == {hub.HUB_FILE}


def test_a_name_on_the_hub_goes_where_files_go(run, server, tmp_path, monkeypatch, capsys):
    push.main([str(run), "pets/small"])  # the folder of a run stands for its model
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64)).save("a.png")
    predict.main(["hf-hub:pets/small", "a.png", "--out", "out"])
    assert (tmp_path / "out/predictions.json").is_file()
    # Out of reach, what was fetched once is used again.
    server.shutdown()
    server.server_close()
    assert load("hf-hub:pets/small").categories.names[0] == "dog"
    with pytest.raises(CheckpointError, match=r"hf-hub:pets/other: .*cannot be reached"):
        load("hf-hub:pets/other")
    capsys.readouterr()


def test_the_card_says_what_the_run_knows(run, tmp_path, capsys):
    before = files_below(run)
    push.main([str(run / "model.safetensors"), "pets/small", "--dry-run", "--out", str(tmp_path)])
    assert "nothing sent" in capsys.readouterr().out
    assert {file.name for file in tmp_path.iterdir()} == FILES and files_below(run) == before
    text = (tmp_path / "README.md").read_text(encoding="utf-8")
    _, head, page = text.split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["library_name"] == "densenet-backbones" and card["license"] == "unknown"
    assert card["pipeline_tag"] == "object-detection" and card["metrics"] == ["ap"]
    (result,) = card["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "ap", "value": 0.5, "name": "AP"}]
    assert result["dataset"]["name"] == "pets"
    assert 'load("hf-hub:pets/small")' in page and "| dog | 3 | 0.500 | - |" in page
    for fact in (
        "from a score of 0.30 on",
        "7 evaluated images",
        "adamw",
        "| epochs | 2 |",
        "| torch | 2.14 |",
    ):
        assert fact in page
    # Names act as nothing, and places of this machine are nobody's business.
    assert NASTY not in page and "<b>" not in page and "`|x`" not in page
    assert "/home" not in text and "secret" not in text
    for name in FILES - {"README.md", "model.safetensors"}:
        assert f"({name})" in page


def test_damaged_files_of_the_run_are_named(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "run")
    (copy / "summary.json").write_text('{"format": 1, "data"')
    words = [str(copy / "model.safetensors"), "pets/small", "--dry-run", "--out"]
    push.main([*words, str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert said.splitlines()[0].endswith("summary.json: is damaged, so the card says less")
    assert said.count("is damaged") == 1 and (tmp_path / "out/README.md").is_file()


def test_the_numbers_of_a_resumed_run_are_those_of_its_last_evaluation(run, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(run, folder)
    shutil.copytree(run / "evaluation", folder / "evaluation-2")
    metrics = {"coco": {"iou_type": "bbox", "images": 7, "numbers": {"AP": 0.75}, "classes": []}}
    (folder / "evaluation-2/metrics.json").write_text(json.dumps(metrics))
    record = read_run(folder / "model.safetensors")
    assert [part["numbers"] for _, part in record.list_evaluations()] == [{"AP": 0.75}]
    assert folder / "evaluation-2/predictions.png" in record.pictures


def test_a_classifier_goes_to_the_hub_and_comes_back(server, tmp_path, capsys):
    model = save_classifier(tmp_path)
    names = load(model).spec.class_names
    rows = [{"name": n, "images": 60, "recall": 0.5, "precision": None, "f1": 0.25} for n in names]
    rows[0]["images"] = 9
    metrics = {"images": 309, "numbers": {"accuracy": 0.5, "top5": 1.0}, "classes": rows}
    (model.parent / "evaluation").mkdir()
    (model.parent / "config.yaml").write_text("{data: {root: /home/me/farm}}")
    (model.parent / "evaluation/metrics.json").write_text(json.dumps(metrics))
    push.main([str(model), "pets/kinds"])
    ((_, sent),) = server.repos["pets/kinds"]["commits"].items()
    _, head, page = sent["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(head)
    assert card["pipeline_tag"] == "image-classification" and card["metrics"] == [
        "accuracy",
        "top5",
    ]
    for fact in (
        *("Image classification: `densenet40_k12`", "309 evaluated images", "`result.top()`"),
        *("| dog | 9 | 0.500 | - | 0.250 |", "Fewer than 50 images were there", ": dog."),
    ):
        assert fact in page
    assert NASTY not in page and "/home" not in page and "Boxes" not in page
    image = tmp_path / "a.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(image)
    ours, theirs = (load(m).predict(image) for m in (model, "hf-hub:pets/kinds"))
    assert ours.name == theirs.name and (ours.scores == theirs.scores).all()
    capsys.readouterr()


def test_a_model_without_its_run_has_a_card_too(run, tmp_path, capsys):
    alone = shutil.copy(run / "model.safetensors", tmp_path / "model.safetensors")
    words = [str(alone), "pets/small", "--dry-run", "--no-pictures"]
    push.main([*words, "--out", str(tmp_path / "hub")])
    assert {f.name for f in (tmp_path / "hub").iterdir()} == {"README.md", "model.safetensors"}
    assert "## Limits" in (tmp_path / "hub/README.md").read_text(encoding="utf-8")
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["pets"], "REPO must be OWNER/NAME, got 'pets'"),
        (["pets/x", "--license", "a b"], "--license must be a name such as apache-2.0"),
        (["pets/x", "--out", "y"], "--out names the folder of a dry run"),
        (["pets/x", "--dry-run", "--out", "."], "has files already"),
        (["pets/open", "--private"], "pets/open: is a public repository"),
    ],
)
def test_pushes_that_are_refused(words, sentence, run, server, refused_command, monkeypatch):
    monkeypatch.chdir(run)
    server.repos["pets/open"] = {"private": False, "commits": {}}
    code, line = refused_command(push.main, run / "model.safetensors", *words)
    assert code == 1 and sentence in line
    assert not any(repo["commits"] for repo in server.repos.values()), "nothing was sent"


@pytest.mark.parametrize(
    ("token", "sentence"),
    [(None, "run `hf auth login`"), ("wrong", "this account may not write there")],
)
def test_an_account_is_needed(token, sentence, run, tmp_path, refused_command):
    with running_hub(tmp_path / "cache", token=token):
        _, line = refused_command(push.main, run / "model.safetensors", "pets/small")
    assert sentence in line


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("hf-hub:pets", "write hf-hub:OWNER/NAME"),
        ("hf-hub:../../etc/passwd", "write hf-hub:OWNER/NAME"),
        ("hf-hub:pets/none", "there is no such repository"),
        ("hf-hub:pets/pickled", "has no model.safetensors; other files"),
        ("hf-hub:pets/pickled@v7", "has no revision 'v7'"),
    ],
)
def test_downloads_that_are_refused(name, sentence, server):
    server.repos["pets/pickled"] = {"private": False, "commits": {}}
    server.commit("pets/pickled", {"pytorch_model.bin": b"x"})
    with pytest.raises(CheckpointError) as error:
        load(name)
    assert str(error.value).startswith(f"{name}: ") and sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_the_size_is_asked_for_first(server):
    server.repos["pets/huge"] = {"private": False, "commits": {}}
    server.commit("pets/huge", {"model.safetensors": b"x"})
    server.claimed_size = hub.MAX_HUB_FILE + 1
    with pytest.raises(CheckpointError, match="at most 4294967296 bytes are fetched"):
        load("hf-hub:pets/huge")
    assert {method for method, _ in server.requests} == {"HEAD"}


def test_what_is_fetched_can_be_no_program(server):
    server.repos["pets/evil"] = {"private": False, "commits": {}}
    server.commit("pets/evil", {"model.safetensors": b"cos\nsystem\n(S'true'\ntR."})
    with pytest.raises(CheckpointError, match="no file of weights"):
        load("hf-hub:pets/evil")


def test_offline_is_said(server, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with contextlib.suppress(ImportError):
        from huggingface_hub.utils import _http

        _http.close_session()
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE forbids"):
        load("hf-hub:pets/small")
    assert not server.requests
