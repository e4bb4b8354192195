"""`densenet`: its table, what it answers without heavy imports, and which training it chooses."""

import contextlib
import importlib
import io
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from fresh_processes import run_fresh
from locations import PROJECT
from mask_sets import write_image, write_mask

from densenet_backbones.command import completion, listing
from densenet_backbones.command.completion import make_whole_parser
from densenet_backbones.command.main import import_entry, main
from densenet_backbones.command.table import COMMANDS
from densenet_backbones.command.training import choose_task, make_parser
from densenet_backbones.data.scenes.generation import generate_scenes
from densenet_backbones.messages import CommandParser
from densenet_backbones.torchvision_models import DETECTORS, SEGMENTERS


@pytest.fixture(autouse=True)
def keep_program(monkeypatch):
    monkeypatch.setattr(CommandParser, "program", None)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_an_entry_and_a_parser(name, capsys):
    entry = COMMANDS[name].entry
    assert callable(import_entry(entry))
    assert import_entry(f"{entry.partition(':')[0]}:make_parser")()
    assert len(f"  {name:12}{COMMANDS[name].help}") <= 80
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"densenet {name}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "there is no command 'trian'; did you mean 'train'? (commands: train, "),
        (["val"], "there is no command 'val'; did you mean 'evaluate'? (commands: train, "),
        (["--data", "x"], "unrecognized arguments: --data"),
        (["list", "configz"], "invalid choice: 'configz'"),
    ],
)
def test_a_typo_is_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1


def test_help_typos_and_lists_import_nothing_heavy():
    # The package's root imports torch by itself; here a bare one stands in for it.
    out = run_fresh(
        "import sys, types, importlib.util\n"
        "root = types.ModuleType('densenet_backbones')\n"
        "spec = importlib.util.find_spec('densenet_backbones')\n"
        "root.__path__ = list(spec.submodule_search_locations)\n"
        "sys.modules['densenet_backbones'] = root\n"
        "from densenet_backbones.command.main import main\n"
        "for words in (['--help'], ['trian'], ['list'], ['train', '--help']):\n"
        "    try:\n"
        "        main(words)\n"
        "    except SystemExit:\n"
        "        pass\n"
        "print([n for n in ('torch', 'lightning', 'timm', 'numpy') if n in sys.modules])"
    )
    assert "retinanet_densenet121_bccd" in out
    assert out.rstrip().endswith("[]")


@pytest.mark.parametrize("words", ["list", "completion bash"])
def test_a_reader_that_goes_early_is_no_traceback(words):
    """As ``densenet list | head -1``, where `head` has gone before the second line."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "densenet_backbones", *words.split()],
            cwd=PROJECT,
            stdout=closed,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "")


def test_the_list_names_every_model(capsys):
    on_any = {name for name in DETECTORS if "densenet" not in name}
    assert set(listing.DETECTORS) == on_any
    assert set(listing.SEGMENTERS) - {"smp:NAME"} == set(SEGMENTERS)
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) < 160
    assert any(line.startswith("  densenetblur121d_features") for line in lines)


@pytest.mark.parametrize(
    ("words", "task"),
    [
        ([], "detection"),
        (["--task", "segmentation"], "segmentation"),
        (["--config", "unet_densenet121_voc"], "segmentation"),
        (["--config", "seg/quickstart"], "segmentation"),
        (["--config", "configs/seg/quickstart.yaml"], "segmentation"),
        (["--config", "quickstart"], "detection"),
        (["--config", "dsod300_voc"], "detection"),
        (["--config", "mine.yaml"], "segmentation"),
        (["--resume", "--run-dir", "run"], "segmentation"),
        (["--model.segmenter=unet"], "segmentation"),
        (["--config", "cls/quickstart"], "classification"),
        (["--model.classifier", "densenet40_k12"], "classification"),
        (["--model.detector", "dsod300"], "detection"),
    ],
)
def test_the_task_follows_from_words_and_configs(words, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = "model:\n  segmenter: unet\nema_decay: null\n"
    for file in ("mine.yaml", "run/config.yaml"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(experiment)
    assert choose_task(*make_parser().parse_known_args(words)) == task


def test_the_task_follows_from_the_data(tmp_path):
    def choose(*words):
        return choose_task(*make_parser().parse_known_args(words))

    picture = np.zeros((32, 32), np.uint8)
    masks = tmp_path / "masks_alone"
    write_image(masks / "images" / "train" / "a.jpg", picture)
    write_mask(masks / "masks" / "train" / "a.png", picture)
    (masks / "classes.yaml").write_text("classes: [road]\n")
    scenes = generate_scenes(tmp_path / "boxes", train=1, val=1, size=160, progress=False)
    assert choose("--data", str(masks)) == "segmentation"
    assert choose("--data.root", str(scenes)) == "detection"
    assert choose("--data", str(tmp_path / "nowhere")) == "detection"
    assert choose("--data", str(scenes), "--task", "segmentation") == "segmentation"


def test_training_is_handed_the_words_without_the_task(monkeypatch):
    cli = importlib.import_module("densenet_backbones.training.cli")
    calls = []
    monkeypatch.setattr(cli, "train_seg", calls.append)
    main(["train", "--task", "segmentation", "--epochs", "3", "--data.seed=1"])
    assert calls == [["--epochs", "3", "--data.seed=1"]]


def test_what_is_not_installed_is_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    acting = "densenet_backbones.training.evaluation.evaluating"
    monkeypatch.delitem(sys.modules, acting, raising=False)
    (model := tmp_path / "model.ckpt").touch()
    with pytest.raises(SystemExit):
        main(["evaluate", str(model), "--data", str(tmp_path)])
    assert (
        'densenet evaluate needs lightning.pytorch, which is not installed; pip install "den'
        in (capsys.readouterr().err)
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("densenet ev", {"evaluate"}),
        ("densenet train --batch", {"--batch-size"}),
        ("densenet list conf", {"configs"}),
    ],
)
def test_bash_completes_words(line, words, bash_script):
    # As bash does it: the words of the line, the last of them unfinished.
    typed = line.split()
    program = (
        f"source {bash_script}; COMP_WORDS=({' '.join(typed)}); COMP_CWORD={len(typed) - 1}; "
        '_shtab_densenet; printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == words, done.stderr


@pytest.fixture(scope="module")
def bash_script(tmp_path_factory):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        main(["completion", "bash"])
    script = tmp_path_factory.mktemp("completion") / "densenet.bash"
    script.write_text(output.getvalue())
    return script


@pytest.mark.parametrize("shell", completion.SHELLS[1:])
def test_other_shells_have_scripts(shell, capsys):
    main(["completion", shell])
    assert "batch-size" in capsys.readouterr().out


def test_words_can_be_completed_for_every_command():
    commands = make_whole_parser()._subparsers._group_actions[0].choices
    assert set(commands) == set(COMMANDS)
    assert "--batch-size" in commands["train"]._option_string_actions
