"""Flags that people type: ours, those of other tools, and arguments of the model that merge."""

import argparse
import json
import os

import pytest
import yaml

from densenet_backbones.inference import predict
from densenet_backbones.messages.command_line import _FOREIGN
from densenet_backbones.training import arguments, evaluate
from densenet_backbones.training.cli import train_det
from densenet_backbones.training.engine import TrainingCLI
from densenet_backbones.training.options.model_arguments import settle_model_arguments
from densenet_backbones.training.resuming import run_logs
from densenet_backbones.training.run_folder import RunFolderError
from densenet_backbones.training.tasks.detection import DetectionTask
from densenet_backbones.training.tasks.segmentation import SegmentationTask

RETINANET = ("--config", "retinanet_densenet121_bccd")


def settle(*words, task=DetectionTask):
    full = arguments.expand_short_flags(words, task.form)
    return settle_model_arguments(full, *task.name_model())


def model_args(*words, task=DetectionTask):
    last = settle(*words, task=task)[-1]
    return json.loads(last.removeprefix("--model.args="))


# -- arguments of the model -----------------------------------------------------------------------


def test_arguments_of_the_model_join_those_of_the_config(tmp_path):
    theirs = {"backbone": "densenet121_features", "min_size": 256, "max_size": 352}
    theirs["anchor_scale"] = 0.5
    ours = model_args(*RETINANET, "--model.args", "{score_thresh: 1e-3, min_size: 128}")
    assert ours == {**theirs, "score_thresh": 0.001, "min_size": 128}
    dotted = ("--model.args.backbone_kwargs.tap=norm", "--model.args.extra", "null")
    assert model_args(*RETINANET, *dotted) == {
        **theirs,
        "backbone_kwargs": {"tap": "norm"},
        "extra": None,
    }
    (tmp_path / "more.yaml").write_text("model: {args: {min_size: 64}}\nema_decay: null\n")
    assert model_args(*RETINANET, "--config", str(tmp_path / "more.yaml"))["min_size"] == 64
    assert model_args(*RETINANET, "--model.args=null", "--model.args.norm", "bn") == {"norm": "bn"}


def test_the_engine_is_given_what_was_merged(capsys):
    with pytest.raises(SystemExit):
        train_det([*RETINANET, "--model.args", "{score_thresh: 0.1}", "--print_config"])
    args = yaml.safe_load(capsys.readouterr().out)["model"]["args"]
    assert args["min_size"] == 256 and args["score_thresh"] == 0.1


@pytest.mark.parametrize("words", [(), RETINANET, ("--model.args", "3")])
def test_what_needs_no_merging_is_left_to_the_engine(words):
    full = arguments.expand_short_flags(words)
    assert settle_model_arguments(full, "detector", "dsod300") in (full, settle(*words))
    assert not any(word.startswith("--model.args={") for word in settle(*words))


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        ("retinanet_densenet121_bccd", {"min_size": 320, "max_size": 440}),
        ("fcos_densenet121_fpn_coco", {"min_size": 320, "max_size": 533}),
        ("dsod300_voc", {"image_size": 320}),
        ("ssd300_densenet121_voc", {"image_size": 320}),
    ],
)
def test_size_is_that_of_the_kind_of_detector(config, sizes):
    assert model_args("--config", config, "--size", "320").items() >= sizes.items()


def test_size_of_a_segmenter_is_the_crop():
    assert settle("--size", "320", task=SegmentationTask)[-1] == "--data.crop=[320, 320]"
    with pytest.raises(argparse.ArgumentError, match="--size must be a number of pixels, got x"):
        settle("--size", "x")


def test_a_bare_checkout_has_the_configs_too(monkeypatch):
    packaged = arguments.list_configs()

    def fail(package):
        raise ModuleNotFoundError(package)

    monkeypatch.setattr(arguments.resources, "files", fail)
    assert {n: f.resolve() for n, f in packaged.items()} == arguments.list_configs()


# -- flags ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "engine"),
    [
        ("--lr 0.1", ["--model.optimizer.lr=0.1"]),
        ("--workers 3", ["--data.num_workers=3"]),
        ("--precision auto", ["--trainer.precision=auto"]),
        ("--seed 7", ["--seed_everything=7", "--data.seed=7"]),
        ("--device cpu", ["--trainer.accelerator=cpu", "--trainer.devices=auto"]),
        ("--device cuda", ["--trainer.accelerator=cuda", "--trainer.devices=1"]),
        ("--device cuda:1", ["--trainer.accelerator=cuda", "--trainer.devices=[1]"]),
        ("--device mps", ["--trainer.accelerator=mps", "--trainer.devices=1"]),
        ("--name mine --logger csv", ["--name=mine", "--logger=csv"]),
    ],
)
def test_short_flags_are_the_engines(words, engine):
    assert arguments.expand_short_flags(words.split())[1:] == engine


def test_a_device_that_is_none(capsys):
    with pytest.raises(argparse.ArgumentError, match=r"--device must be cpu, cuda, .*, got 0"):
        arguments.expand_short_flags(["--device", "0"])
    with pytest.raises(SystemExit) as stop:
        evaluate.main(["no.ckpt", "--data", "x", "--device", "gpu"])
    assert stop.value.code in (1, 2)


def test_a_name_is_no_path():
    with pytest.raises(RunFolderError, match="--name must be the name of a folder below runs/"):
        TrainingCLI(DetectionTask, settle("--name", "../x"))


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        arguments.expand_short_flags(["--version"])
    assert capsys.readouterr().out.strip().count(".") >= 2


# -- other tools' ---------------------------------------------------------------------------------

PARSERS = {
    "training": lambda: arguments.make_parser(arguments.DETECTION_FORM),
    "evaluate": evaluate.make_parser,
    "predict": predict.make_parser,
}


def test_each_option_of_other_tools_has_ours_somewhere():
    names = (name for make in PARSERS.values() for name in make().list_names())
    known = {name.lstrip("-").replace("_", "-") for name in names} | {"patience"}
    for foreign, ours in _FOREIGN.items():
        assert set(ours) & known, foreign


@pytest.mark.parametrize(
    ("parser", "words", "ours"),
    [
        ("training", "--imgsz 640", "here it is --size"),
        ("training", "--iou=0.6", "here it is nms_thresh of --model.args, --model.args.nms_thresh"),
        ("training", "--learning_rate 1", "here it is --lr"),
        ("training", "--gpus 1", "here it is --device"),
        ("training", "--project x", "here it is --run-dir"),
        ("training", "--batch 4", "here it is --batch-size"),
        ("evaluate", "--batch 4 m.ckpt --data x", "here it is --batch-size"),
        ("evaluate", "--data.annotation_file a.json", "here it is --annotation-file"),
        ("predict", "--conf 0.4", "here it is --score"),
        ("predict", "--source a.jpg", "give the images as a word of its own"),
    ],
)
def test_options_of_other_tools_are_answered_with_ours(parser, words, ours, capsys):
    with pytest.raises(SystemExit) as stop:
        PARSERS[parser]().parse_known_args(words.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert f"is an option of other tools; {ours}" in error


def test_a_typo_is_answered_with_the_nearest(capsys):
    with pytest.raises(SystemExit):
        evaluate.make_parser().parse_args(["m.ckpt", "--data", "x", "--anotation-file", "y"])
    assert "did you mean '--annotation-file'" in capsys.readouterr().err


# -- loggers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "kinds"),
    [
        (None, ["EventLogger", "ContinuedCSVLogger"]),
        (True, ["EventLogger", "ContinuedCSVLogger"]),
        ("tensorboard", ["EventLogger", "ContinuedCSVLogger"]),
        ("csv", ["ContinuedCSVLogger"]),
        (False, ["ContinuedCSVLogger"]),
    ],
)
def test_the_table_is_written_whatever_the_logger(wanted, kinds, tmp_path):
    loggers = run_logs.make_loggers(wanted, tmp_path)
    assert [type(logger).__name__ for logger in loggers] == kinds
    own = run_logs.make_loggers(loggers[0], tmp_path)
    assert own[0] is loggers[0] and type(own[1]).__name__ == "ContinuedCSVLogger"


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_one_sentence(name, tmp_path, monkeypatch):
    def fail(*args, **options):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(run_logs, {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}[name], fail)
    with pytest.raises(run_logs.MisconfigurationException, match=f'pip install ".*{name}]"'):
        run_logs.make_loggers(name, tmp_path)


def test_where_mlflow_writes_depends_on_what_is_installed(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(run_logs, "MLFlowLogger", lambda *args, **options: made.append(options))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    for found in (False, True):
        monkeypatch.setattr(run_logs, "_is_installed", lambda name, found=found: found)
        run_logs.make_loggers("mlflow", tmp_path / "run")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://localhost:5000")
    run_logs.make_loggers("mlflow", tmp_path / "run")
    places = [options["tracking_uri"] for options in made]
    files = (tmp_path / "mlruns").as_uri()
    database = f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert places == [files, database, "http://localhost:5000"]
    assert os.environ["MLFLOW_ALLOW_FILE_STORE"] == "true"


def test_a_service_that_refuses_its_place_is_one_sentence(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("in maintenance mode")

    monkeypatch.setattr(run_logs, "MLFlowLogger", refuse)
    with pytest.raises(run_logs.MisconfigurationException, match=r"start \(in maintenance mode\)"):
        run_logs.make_loggers("mlflow", tmp_path)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [("tensorboard", "tensorboard --logdir {}"), ("csv", "{}/pictures/training_curves.png")],
)
def test_the_last_lines_tell_where_the_curves_are(wanted, expected, tmp_path):
    loggers = run_logs.make_loggers(wanted, tmp_path)
    told = run_logs.tell_curves(loggers, tmp_path, tmp_path / "pictures")
    assert told == expected.format(tmp_path)


def test_a_logger_that_cannot_start_is_one_sentence():
    class Service:
        @property
        def experiment(self):
            raise RuntimeError("api_key not configured\n(no-tty)")

    trainer = argparse.Namespace(loggers=[Service()])
    with pytest.raises(run_logs.MisconfigurationException, match=r"\(api_key not configured \(no"):
        run_logs.start_loggers(trainer)


def test_arguments_of_another_model_are_its_own(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text("model: {segmenter: unet, args: {attention: true}}")
    for more, added in (
        (['--model.args={"a": 1}'], {"a": 1}),
        (["--model.args.a=1"], {"a": 1}),
        ([], {}),
    ):
        for name, kept in (("fcdensenet56", {}), ("unet", {"attention": True})):
            words = [f"--config={config}", f"--model.segmenter={name}", *more]
            *_, merged = settle_model_arguments(words, "segmenter", None)
            if not more and kept:
                assert merged == words[-1]  # the config's own stand
            else:
                assert json.loads(merged.removeprefix("--model.args=")) == {**kept, **added}


def test_another_model_keeps_what_it_takes_too(tmp_path):
    config = tmp_path / "own.yaml"
    config.write_text(
        "model: {detector: dsod_tiny, args: {head_norm: false, backbone: densenet121_features}}"
    )
    *_, merged = settle_model_arguments(
        [f"--config={config}", "--model.detector=ssd300", "--model.args.image_size=96"],
        *("detector", None),
    )
    kept = {"backbone": "densenet121_features", "image_size": 96}
    assert json.loads(merged.removeprefix("--model.args=")) == kept
