"""Trainings that take a second or two: a detector of 47 000 parameters on images of 64 pixels."""

import json
import signal
from contextlib import contextmanager
from pathlib import Path

import torch

# Two layers fewer a block than `dsod_tiny`, and narrow: every part of a detector is there.
DETECTOR_ARGS = {
    "image_size": 64,
    "backbone_kwargs": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8},
    "adapter_channels": [8, 8, 8, 8],
    # The published head and loss, whatever the quick start has.
    "prior_sizes": "voc",
    "head_norm": True,
    "prior_probability": None,
    "smooth_l1_beta": 1.0,
    "vote_thresh": 1.0,
}


def training_arguments(data, *more, epochs=2):
    """Arguments of `train_det`: nothing is left to a shipped config whose numbers may change."""
    return [
        *("--config", "quickstart", "--data", str(data)),
        *("--epochs", str(epochs), "--batch-size", "4"),
        *("--model.detector", "dsod_tiny", "--model.args", json.dumps(DETECTOR_ARGS)),
        *("--model.optimizer", '{"name": "adamw", "lr": 0.01, "base_batch": 0}'),
        *("--model.schedule", '{"name": "cosine", "warmup": 0.1}', "--ema_decay", "0.9"),
        *("--data.augmentation", "light", "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"),
        *("--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"),
        *more,
    ]


@contextmanager
def signals_as_before():
    """Lightning leaves Ctrl-C ignored after it was used once; the tests after this need it."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def differences(first, second, where=""):
    """Paths at which two nested containers differ; tensors must be equal bit for bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.shape == second.shape and first.dtype == second.dtype
        return [] if same and torch.equal(first, second) else [where]
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return [f"{where}: keys {sorted(map(str, first.keys() ^ second.keys()))}"]
        pairs = [(f"{where}.{key}", first[key], second[key]) for key in first]
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            return [f"{where}: length"]
        pairs = [(f"{where}[{n}]", *both) for n, both in enumerate(zip(first, second, strict=True))]
    else:
        return [] if first == second else [f"{where}: {first} and {second}"]
    return [found for place, a, b in pairs for found in differences(a, b, place)]


def files_below(folder):
    """Every file with its bytes, to see that nothing was changed."""
    folder = Path(folder)
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


# torchvision's detectors on the same backbone, at a size where a step takes a fraction of a second.
PYRAMID_ARGS = {
    "weights_backbone": None,
    "min_size": 64,
    "max_size": 96,
    "out_channels": 16,
    "backbone_kwargs": DETECTOR_ARGS["backbone_kwargs"],
}
RCNN_ARGS = {
    **PYRAMID_ARGS,
    "rpn_pre_nms_top_n_train": 50,
    "rpn_post_nms_top_n_train": 30,
    "rpn_pre_nms_top_n_test": 30,
    "rpn_post_nms_top_n_test": 10,
    "box_batch_size_per_image": 16,
    "box_detections_per_img": 5,
    "box_score_thresh": 0.0,
}


@contextmanager
def shallow_heads():
    """One layer in the heads of masks and keypoints: four and eight are most of a tiny detector."""
    import torchvision.models.detection.keypoint_rcnn as keypoint_rcnn
    import torchvision.models.detection.mask_rcnn as mask_rcnn

    masks, keypoints = mask_rcnn.MaskRCNNHeads, keypoint_rcnn.KeypointRCNNHeads
    mask_rcnn.MaskRCNNHeads = lambda channels, layers, *more: masks(channels, layers[:1], *more)
    keypoint_rcnn.KeypointRCNNHeads = lambda channels, layers: keypoints(channels, layers[:1])
    try:
        yield
    finally:
        mask_rcnn.MaskRCNNHeads, keypoint_rcnn.KeypointRCNNHeads = masks, keypoints


def instance_arguments(data, detector, *more, args=RCNN_ARGS, epochs=2):
    """As `training_arguments`, of one of torchvision's detectors."""
    return training_arguments(
        data,
        *("--model.detector", detector, "--model.args", json.dumps(args)),
        *("--model.optimizer.lr", "0.001", "--data.augmentation", "flip", *more),
        epochs=epochs,
    )
