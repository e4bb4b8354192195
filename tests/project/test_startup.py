"""What is imported to answer: nothing heavy for help, lists and typos, no training for `predict`.

Lists of imports and no times: ``tools/benchmark.py startup`` measures those.
"""

import json
import os

import numpy as np
import pytest
from fresh_processes import run_fresh
from locations import PROJECT
from PIL import Image

from densenet_backbones.benchmark.subcommands import SUBCOMMANDS, TIMM_NETS
from densenet_backbones.benchmark.subcommands.options import MODES
from densenet_backbones.command.listing import DETECTORS, SEGMENTERS
from densenet_backbones.command.table import COMMANDS
from densenet_backbones.inference.options import BOUNDARY_TOLERANCE, FORMATS, PRECISIONS

HEAVY = (
    *("torch", "torchvision", "timm", "lightning", "transformers", "torchmetrics", "jsonargparse"),
    *("numpy", "scipy", "pandas", "cv2", "PIL", "matplotlib", "albumentations", "pycocotools"),
    *("huggingface_hub", "segmentation_models_pytorch", "onnx", "onnxruntime", "openvino"),
    *("optuna", "gradio", "av", "tensorboard"),
)
OF_TRAINING = (
    *("lightning", "albumentations", "torchmetrics", "matplotlib", "pandas", "scipy", "onnx"),
    *("onnxruntime", "openvino", "segmentation_models_pytorch", "transformers", "av"),
)
TOOLS = sorted(path.name for path in (PROJECT / "tools").glob("*.py"))
PROGRAMS = ("run", "checkpoints", "data.scenes")

# Each answers from its words and the paths alone, in a folder with the files that the test makes.
TYPOS = (
    *("train_det.py --confg x", "train_det.py --config nosuch", "train_det.py --data nowhere"),
    *("train_seg.py --epochs many", "train_seg.py --init-from nowhere.ckpt", "train_cls.py word"),
    *("train_cls.py --device gpu", "train_det.py --batch bs", "train_det.py --config image.jpg"),
    *("train_det.py --resume", "train_seg.py --resume --name no"),
    "train_cls.py --resume --run-dir no",
    *("train_det.py --model.optimiser.lr 0.1", "train_det.py --model.args.growthrate 8"),
    *("train_seg.py --data.bach_size 4", "train_cls.py --trainer.max_epoch 3"),
    *("train_det.py --config bad.yaml", "-m densenet_backbones train --model.scedule.name cosine"),
    *("evaluate.py model.ckpt", "evaluate.py nowhere.ckpt --data .", "evaluate.py --data ."),
    *("evaluate.py model.ckpt --data nowhere", "evaluate.py model.ckpt --data . --tta turn"),
    *("predict.py nowhere.ckpt image.jpg", "predict.py model.ckpt nowhere.jpg"),
    *("predict.py model.ckpt image.jpg --save xml", "predict.py model.ckpt image.jpg --score 2"),
    *("export.py nowhere.ckpt", "export.py model.ckpt --out a.bin", "export.py a --format tflite"),
    *("push.py nowhere.ckpt a/b", "push.py model.ckpt word", "demo.py nowhere.ckpt"),
    *("heatmap.py nowhere.ckpt", "report.py nowhere.ckpt", "report.py", "compare.py nowhere"),
    *("sweep.py --data nowhere", "sweep.py --try lr=1,2 --data nowhere"),
    *("inspect_data.py nowhere", "inspect_data.py . --images 0"),
    *("benchmark.py nosuch", "benchmark.py memory --modes lean", "benchmark.py startup --net vgg"),
)


def list_answers():
    """Words of the answers: file in tools/, or module after "-m", then the arguments."""
    for tool in TOOLS:
        yield [tool, "--help"]
        yield [tool, "--no-such-option"]
    yield from map(str.split, TYPOS)
    package = "densenet_backbones"
    yield ["-m", package]
    yield ["-m", package, "--version"]
    yield ["-m", package, "trian"]
    for command in COMMANDS:
        yield ["-m", package, command, "--help"]
    for kind in ("", "configs", "backbones", "detectors", "segmenters", "classifiers"):
        yield ["-m", package, "list", *kind.split()]
    yield ["-m", package, "train", "--data", "nowhere"]
    yield ["-m", package, "completion", "bash"]
    for command in SUBCOMMANDS:
        yield ["benchmark.py", command.name, "--help"]
    for program in PROGRAMS:
        yield ["-m", f"{package}.{program}", "--help"]
    yield ["-m", f"{package}.run", "nowhere.py"]
    yield ["-m", f"{package}.checkpoints", "nowhere.ckpt"]


ANSWER = f"""
import contextlib, io, json, os, runpy, sys
os.chdir(os.environ["ANSWERED_IN"])
said = []
for words in json.loads(os.environ["ANSWERS"]):
    text, before = io.StringIO(), set(sys.modules)
    module = words[0] == "-m"
    place = "" if module else os.path.join({str(PROJECT / "tools")!r}, words[0])
    sys.argv = words[1:] if module else [place, *words[1:]]
    try:
        with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
            if module:
                runpy.run_module(words[1], run_name="__main__")
            else:
                runpy.run_path(sys.argv[0], run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code
    heavy = sorted({{name.partition(".")[0] for name in set(sys.modules) - before}} & set({HEAVY}))
    said.append((" ".join(words), code, text.getvalue(), heavy))
print(json.dumps(said))
"""


def test_help_lists_and_typos_import_nothing_heavy(tmp_path, monkeypatch):
    (tmp_path / "model.ckpt").touch()
    (tmp_path / "image.jpg").touch()
    (tmp_path / "bad.yaml").write_text("data: {batchsize: 4}\n")
    monkeypatch.setenv("ANSWERED_IN", str(tmp_path))
    monkeypatch.setenv("ANSWERS", json.dumps(list(list_answers())))
    said = json.loads(run_fresh(ANSWER))
    assert {words: heavy for words, _, _, heavy in said if heavy} == {}
    for words, code, text, _ in said:
        asks = any(word in words for word in ("--help", "--version", " list", "completion"))
        assert code in (0, None) if asks or words == "-m densenet_backbones" else code in (1, 2), (
            words,
            code,
            text,
        )
        assert "Traceback" not in text and text.strip(), words
    assert not {path.name for path in tmp_path.iterdir()} - {"model.ckpt", "image.jpg", "bad.yaml"}


def test_one_image_is_predicted_without_the_training_tools(tiny_run, tmp_path):
    Image.fromarray(np.full((90, 120, 3), 99, np.uint8)).save(tmp_path / "image.png")
    words = [tiny_run / "model.safetensors", tmp_path / "image.png", "--device", "cpu"]
    words = [str(word) for word in (*words, "--out", tmp_path / "out")]
    out = run_fresh(
        "import sys\n"
        "from densenet_backbones.inference.predict import main\n"
        f"main({words})\n"
        f"print([name for name in {OF_TRAINING} if name in sys.modules])"
    )
    assert out.splitlines()[-1] == "[]"
    assert (tmp_path / "out/image.png").is_file()


# As a tool does that imports a package to look where it lies, and takes it away again.
AGAIN = (
    "import densenet_backbones; [sys.modules.pop(n) for n in [*sys.modules] if 'densenet_b' in n]"
)
ORDERS = (
    f"{AGAIN}; import densenet_backbones, timm, torchvision",
    "import densenet_backbones, torchvision, timm",
    "import timm, densenet_backbones, torchvision",
    "import densenet_backbones.deploy, timm, torchvision",
)
# Each order in a process of its own, which begins where torch alone is there: that takes longest.
IN_ORDER = f"""
import gc, os, sys, traceback
import torch
for order in {ORDERS}:
    if (child := os.fork()) == 0:
        try:
            exec(order)
            print(order)
            print(timm.is_model("densenet121_features"))
            print("dsod300" in torchvision.models.list_models(), gc.isenabled())
            print([name for name in {OF_TRAINING} if name in sys.modules])
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.skipif(os.name != "posix", reason="forks")
def test_networks_are_registered_in_any_order_of_imports():
    lines = run_fresh(IN_ORDER).splitlines()
    expected = [[order, "True", "True True", "[]"] for order in ORDERS]
    assert [lines[n : n + 4] for n in range(0, len(lines), 4)] == expected


def test_the_package_alone_imports_nothing_heavy_and_registers_what_comes_later():
    out = run_fresh(
        "import sys, densenet_backbones\n"
        f"print([name for name in {HEAVY} if name in sys.modules])\n"
        "import timm, torchvision\n"
        "print(timm.is_model('densenet121_features'))\n"
        "print('dsod300' in torchvision.models.list_models())\n"
        f"print([name for name in {(*OF_TRAINING, 'pycocotools')} if name in sys.modules])\n"
        "print(densenet_backbones.heads.dsod_tiny.__name__, densenet_backbones.DenseNet.__name__)"
    )
    assert out.splitlines() == ["[]", "True", "True", "[]", "dsod_tiny DenseNet"]


# -- what is listed twice, so that it is listed without torch --------------------------------------


def test_light_lists_are_those_of_the_registries():
    import timm

    from densenet_backbones.dense_block import MEMORY_MODES
    from densenet_backbones.inference.results.savers import SAVERS
    from densenet_backbones.metrics.boundary import TOLERANCE
    from densenet_backbones.torchvision_models import MODELS
    from densenet_backbones.variants import VARIANTS

    assert tuple(SAVERS) == FORMATS
    assert MODES == MEMORY_MODES
    assert tuple(name for name in VARIANTS if timm.is_model(name)) == TIMM_NETS
    assert BOUNDARY_TOLERANCE == TOLERANCE
    assert PRECISIONS.keys() == {"32-true", "bf16-mixed", "16-mixed"}
    variants = {name for name in MODELS if any(variant in name for variant in VARIANTS)}
    named = {*DETECTORS, *SEGMENTERS} - {"smp:NAME"}
    assert named == MODELS.keys() - (variants - named)
