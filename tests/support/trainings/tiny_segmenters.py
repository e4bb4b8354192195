"""Segmentation trainings that take a second or two: a U-Net of 13 000 parameters, 64 pixels."""

import json

# Every part of a U-Net on a DenseNet is there, once.
UNET_ARGS = {
    "backbone": "densenet121_features",
    "backbone_kwargs": {"growth_rate": 4, "block_config": [1, 1, 1, 1], "num_init_features": 8},
    "decoder_channels": [8, 8, 8, 8, 8],
    "logits_stride": 1,  # whatever the quick start has
    "upsampling": "bilinear",  # likewise
}


def segmentation_arguments(data, *more, epochs=2):
    """Arguments of `train_seg`: nothing is left to a shipped config whose numbers may change."""
    return [
        *("--config", "quickstart", "--data", str(data)),
        *("--epochs", str(epochs), "--batch-size", "4"),
        *("--model.segmenter", "unet", "--model.args", json.dumps(UNET_ARGS)),
        *("--model.loss", '{"terms": {"cross_entropy": 1.0, "dice": 0.5}}'),
        *("--model.optimizer", '{"name": "adamw", "lr": 0.01, "base_batch": 0}'),
        *("--model.schedule", '{"name": "cosine", "warmup": 0.1}', "--ema_decay", "0.9"),
        *("--data.augmentation", "light", "--data.crop", "[64, 64]", "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--trainer.devices", "1"),
        *("--trainer.check_val_every_n_epoch", "1", "--trainer.log_every_n_steps", "1"),
        *("--trainer.num_sanity_val_steps", "0", "--trainer.enable_progress_bar", "false"),
        *("--trainer.precision", "32-true", "--trainer.accumulate_grad_batches", "1"),
        *more,
    ]
