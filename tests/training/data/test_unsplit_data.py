"""Data without splits is split once: training, resuming and evaluation take the same images."""

import json
import shutil

import pytest
from instance_sets import change, write_instances
from tiny_runs import signals_as_before, training_arguments

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.detection import DetectionData
from densenet_backbones.data.faults import DataError
from densenet_backbones.data.sets.split_file import SPLIT_FILE, read_split
from densenet_backbones.training.cli import train_det
from densenet_backbones.training.evaluate import main as evaluate

pytestmark = pytest.mark.usefixtures("empty_figures")

SIZES = tuple((40 + n, 50 - n) for n in range(10))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder of images and one file of annotations, as Label Studio exports them."""
    root = tmp_path_factory.mktemp("photos")
    write_instances(root, SIZES)
    shutil.move(root / "annotations/instances_train.json", root / "result.json")
    (root / "annotations").rmdir()
    shutil.move(root / "train", root / "images")
    return root


def train(data, run, *more):
    with signals_as_before():
        train_det([*training_arguments(data, "--run-dir", str(run), *more, epochs=1)])


def names(data_set):
    return {record.path.name for record in data_set.records}


@pytest.mark.long
def test_a_run_splits_the_data_and_what_follows_takes_the_same_images(whole, tmp_path, capsys):
    root = shutil.copytree(whole, tmp_path / "photos")
    train(root, tmp_path / "run", "--data.val_fraction", "0.3")
    file = root / SPLIT_FILE
    held_out = {name for name, side in read_split(file).sides.items() if side}
    assert len(held_out) == 3
    said = "No split given: 7 images to train on and 3 held out, by class (seed 0); "
    assert f"{said}{file} keeps this split" in capsys.readouterr().out
    # Evaluation, another seed and a resumed run: the same images.
    evaluate([str(tmp_path / "run/model.safetensors"), "--data", str(root), "--workers", "0"])
    assert f"Split of {file}: 7 images to train on and 3 held out" in capsys.readouterr().out
    data = DetectionData(str(root), seed=5)
    assert {f"images/{name}" for name in names(data.val_set)} == held_out
    with pytest.raises(SystemExit):
        train(root, tmp_path / "other", "--data.val_fraction", "0.5")
    assert "split with data.val_fraction 0.3, not 0.5" in capsys.readouterr().err
    # A new image is assigned, and none is moved.
    shutil.copy(root / "images/0.png", root / "images/new.png")
    path = root / "result.json"
    content = json.loads(path.read_text())
    content["images"].append({**content["images"][0], "id": 77, "file_name": "new.png"})
    path.write_text(json.dumps(content))
    more = DetectionData(str(root))
    twin = "val" if "images/0.png" in held_out else "train"
    assert "new.png" in names(getattr(more, f"{twin}_set"))
    assert names(data.val_set) <= names(more.val_set)
    assert names(data.train_set) <= names(more.train_set)
    assert "1 new image assigned" in more.lines[-1]


@pytest.mark.long
def test_the_split_lies_in_the_run_where_the_data_cannot_be_written(whole, tmp_path, capsys):
    root = shutil.copytree(whole, tmp_path / "photos")
    (root / SPLIT_FILE).mkdir()  # in the way, as a disk without rights is
    train(root, tmp_path / "run")
    file = tmp_path / f"run/photos.{SPLIT_FILE}"
    assert f"{file} keeps this split" in capsys.readouterr().out
    evaluate([str(tmp_path / "run/model.safetensors"), "--data", str(root), "--workers", "0"])
    out = capsys.readouterr().out
    assert f"Split of {file}: 8 images" in out and "COCO bbox, 2 images" in out
    # Other data, which was never split, is evaluated whole.
    shutil.copytree(whole, tmp_path / "others")
    evaluate([str(tmp_path / "run/model.safetensors"), "--data", str(tmp_path / "others")])
    assert "COCO bbox, 10 images" in capsys.readouterr().out


def test_trained_images_are_not_evaluated_unless_that_is_asked_for(tmp_path):
    root = write_instances(write_instances(tmp_path), SIZES[:3], split="val", seed=1)
    DetectionData(str(root)).setup("fit")
    shutil.copy(root / "train/2.png", root / "val/2.png")
    sizes = {"width": 30, "height": 30}
    change(root, lambda content: content["images"][2].update(sizes), "instances_val")
    with pytest.raises(DataError, match=r"images too: 1 of 3 .*data\.allow_shared_images true"):
        DetectionData(str(root)).setup("fit")
    DetectionData(str(root), allow_shared_images=True).setup("fit")
    DetectionData(str(root), overfit_images=2).setup("fit")
    with pytest.raises(DataError, match="images too: 8 of 8"):
        DetectionData(str(root), val_split="train").setup("fit")


def test_classes_are_renamed_and_left_out_in_both_splits(tmp_path):
    root = write_instances(write_instances(tmp_path), SIZES[:3], split="val", seed=1)
    data = DetectionData(str(root), rename={"box": "thing"}, drop=["person"])
    assert data.train_set.categories.names == data.val_set.categories.names == ("thing",)
    model = Categories.from_names(["thing", "fly"])
    other = DetectionData(str(root), rename={"box": "thing"}, drop=["*"])
    other.use_classes(model)
    assert other.val_set.categories.names == ("thing", "fly")
    assert set(other.val_set.packed.columns.labels) == {1}


def test_a_split_that_is_not_there_is_refused(whole):
    """Its held-out images would be evaluated in the name of others."""
    parts = {
        name: names(DetectionData(str(whole), val_split=name).val_set) for name in ("train", "val")
    }
    assert len(parts["train"]) == 8 and parts["train"].isdisjoint(parts["val"])
    with pytest.raises(DataError, match=r"no split 'tset'; did you mean 'test'\?; none is given"):
        DetectionData(str(whole), val_split="tset").val_set  # noqa: B018  (read at first use)


def test_an_evaluation_of_one_split_alone_says_that_it_takes_all(whole):
    data = DetectionData(str(whole))
    content = json.loads((whole / "result.json").read_text())
    data.use_class_names([category["name"] for category in content["categories"]])
    assert len(data.val_set.records) == len(SIZES)
    assert data.lines[-1] == "No split 'val' is given: all of these images are taken."


def read_alone(data, model):
    """As an evaluation of detections reads it, or one of a model."""
    data.use_own_classes() if model is None else data.use_classes(model)
    return names(data.val_set)


@pytest.mark.parametrize("has_model", [False, True])
def test_an_evaluation_takes_the_part_that_is_asked_for(whole, tmp_path, has_model):
    root = str(shutil.copytree(whole, tmp_path / "photos"))
    trained = DetectionData(root)
    trained.setup("fit")
    trained.store_split()
    model = trained.categories if has_model else None
    assert read_alone(DetectionData(root), model) == names(trained.val_set)
    assert read_alone(DetectionData(root, val_split="train"), model) == names(trained.train_set)
    with pytest.raises(DataError, match="no split 'tset'"):
        read_alone(DetectionData(root, val_split="tset"), model)
    with pytest.raises(DataError, match=r"no class 'persn'; did you mean 'person'\?"):
        read_alone(DetectionData(root, drop=["persn"]), model)
