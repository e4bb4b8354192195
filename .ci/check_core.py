"""Check that what the core dependencies alone promise works after installing the wheel."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import timm
import torch
import torchvision

import densenet_backbones

HEAVY = ("lightning", "albumentations", "cv2", "pycocotools", "matplotlib", "jsonargparse")

unwanted = [name for name in HEAVY if importlib.util.find_spec(name)]
if unwanted:
    sys.exit(f"this is not an environment with the core dependencies alone: it has {unwanted}")
if "site-packages" not in densenet_backbones.__file__:
    sys.exit(f"imported from {densenet_backbones.__file__}, not from the installed wheel")
if any(importlib.util.find_spec(name) for name in ("heads", "configs", "tools", "tests")):
    sys.exit("the wheel put a folder of the repository beside the package")

maps = timm.create_model("densenet121_features").eval()(torch.rand(1, 3, 64, 64))
if [m.shape[1] for m in maps] != [64, 256, 512, 1024, 1024]:
    sys.exit(f"densenet121_features gave maps of {[m.shape for m in maps]}")
detector = torchvision.models.get_model("dsod300_smallest", num_classes=3).eval()
if detector([torch.rand(3, 300, 300)])[0].keys() < {"boxes", "labels", "scores"}:
    sys.exit("dsod300_smallest gave no boxes, labels and scores")
benchmark = Path(sys.executable).with_name("densenet-benchmark")
subprocess.run([benchmark, "all", "--quick"], check=True)
print(f"densenet-backbones {densenet_backbones.__version__} works with torch {torch.__version__}")
