"""Trainings of a classifier that take a second or two: a DenseNet of three layers, 16 pixels."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

NET = {"growth_rate": 4, "block_config": [1, 1, 1], "image_size": 16}
COLORS = {"blue": (30, 40, 200), "green": (20, 190, 60), "red": (210, 30, 40)}


def write_folders(root: Path, splits=("train", "val"), count=8, size=20) -> Path:
    """Write pictures of three colors with noise, ``SPLIT/CLASS/N.png``, or ``CLASS/N.png``."""
    rng = np.random.default_rng(0)
    for split in splits or ("",):
        for name, color in COLORS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for n in range(count):
                noise = rng.integers(-30, 31, (size, size + n % 3, 3))
                pixels = np.clip(np.array(color) + noise, 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{n}.png")
    return root


def classification_arguments(data, *more, epochs=2):
    """Arguments of `train_cls`: nothing is left to a shipped config whose numbers may change."""
    return [
        *("--config", "quickstart", "--data", str(data)),
        *("--epochs", str(epochs), "--batch-size", "4"),
        *("--model.classifier", "densenet40_k12", "--model.args", json.dumps(NET)),
        *("--model.optimizer", '{"name": "adamw", "lr": 0.01, "base_batch": 0}'),
        *("--model.schedule", '{"name": "cosine", "warmup": 0.1}', "--ema_decay", "0.9"),
        *("--data.augmentation", "light", "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"),
        *("--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"),
        *more,
    ]
