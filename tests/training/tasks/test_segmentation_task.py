"""Batches, optimisers and rates of segmentation trainings."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_segmenters import UNET_ARGS

from densenet_backbones.data.mask_samples import MaskClasses, MaskSample
from densenet_backbones.reporting.mask_pictures import (
    draw_mask,
    draw_masks_side_by_side,
    save_index_mask,
)
from densenet_backbones.training.optimization import Optimizer, Schedule
from densenet_backbones.training.tasks.segmentation import Loss, SegmentationTask, stack_padded

CLASSES = MaskClasses.from_names(["ground", "road", "tree"])


def tiny_task(**options):
    task = SegmentationTask("unet", UNET_ARGS, mask_classes=CLASSES, **options)
    task.trainer = SimpleNamespace(
        datamodule=SimpleNamespace(batch=4),
        world_size=1,
        accumulate_grad_batches=1,
        estimated_stepping_batches=20,
        num_training_batches=4,
        max_steps=-1,
        max_epochs=5,
    )
    return task


def sample(height, width, value=100, label=1):
    image = torch.full((3, height, width), value, dtype=torch.uint8)
    mask = torch.full((height, width), label, dtype=torch.uint8)
    return MaskSample(image, mask, image_id=1, index=0, size=(height, width))


def test_images_of_several_sizes_are_padded_with_the_mean_and_ignored():
    images, masks = stack_padded([sample(4, 6), sample(5, 3, 200, 2)], fill=(51.0, 102.0, 255.0))
    assert images.shape == (2, 3, 5, 6) and masks.shape == (2, 5, 6)
    assert images.dtype == torch.float32 and masks.dtype == torch.int64
    torch.testing.assert_close(images[0, :, :4], torch.full((3, 4, 6), 100 / 255))
    torch.testing.assert_close(images[0, :, 4, 0], torch.tensor([0.2, 0.4, 1.0]))
    assert (masks[0, :4] == 1).all() and (masks[0, 4:] == 255).all()
    assert (masks[1, :, :3] == 2).all() and (masks[1, :, 3:] == 255).all()


def test_masks_with_a_channel_a_class_are_stacked():
    first = sample(4, 6)
    first.mask = torch.ones(3, 4, 6, dtype=torch.uint8)
    _, masks = stack_padded([first], fill=(0, 0, 0))
    assert masks.shape == (1, 3, 4, 6) and (masks == 1).all()


def test_labels_of_an_image_do_not_depend_on_the_others():
    task = tiny_task().eval()
    task.metric = task.make_metric(SimpleNamespace(val_set=range(2)))
    torch.manual_seed(0)
    batch = [sample(40, 50), sample(33, 64)]
    for one in batch:
        one.image.random_(0, 256)
    together = task.validation_step(batch, 0)["predictions"]
    alone = [task.validation_step([one], 0)["predictions"][0] for one in batch]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))
    assert [tuple(p.shape) for p in together] == [(40, 50), (33, 64)]
    assert task.metric.compute()["mIoU"] >= 0 and task.metric.evaluation.images == 4


def test_rmsprop_with_a_rate_that_falls_each_epoch():
    """FC-DenseNet's: RMSprop, 1e-3 times 0.995 after each epoch."""
    options = Optimizer("rmsprop", 1e-3, base_batch=0, momentum=0.0, weight_decay=1e-4)
    task = tiny_task(optimizer=options, schedule=Schedule("exponential", gamma=0.995, warmup=0))
    configured = task.configure_optimizers()
    optimizer = configured["optimizer"]
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.0}
    rates = []
    for _ in range(20):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates == pytest.approx([1e-3 * 0.995 ** (step // 4) for step in range(20)])
    task.trainer.max_epochs = -1
    with pytest.raises(ValueError, match=r"exponential needs trainer\.max_epochs"):
        task.configure_optimizers()


def test_lower_layers_learn_slower():
    task = tiny_task(optimizer=Optimizer("adamw", 0.01, 0, weight_decay=0.1, layer_decay=0.5))
    optimizer = task.configure_optimizers()["optimizer"]
    # the schedule's warm-up has begun: what counts is the rate at its top
    rate = {id(p): g["initial_lr"] for g in optimizer.param_groups for p in g["params"]}
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    named = dict(task.model.named_parameters())
    assert len(rate) == len(named)
    assert rate[id(named["net.classifier.weight"])] == pytest.approx(0.01)
    stem, block = "net.backbone.conv0.weight", "net.backbone.denseblock3.denselayer1.conv1.weight"
    assert rate[id(named[stem])] < rate[id(named[block])] < 0.01
    exempt = {name for name, p in named.items() if p.ndim <= 1}
    assert {name for name, p in named.items() if decay[id(p)] == 0} >= exempt
    assert decay[id(named["net.classifier.weight"])] == 0.1
    with pytest.raises(ValueError, match=r"layer_decay must lie in \(0, 1\], got 0"):
        Optimizer(layer_decay=0.0)


def test_a_model_without_layers_is_refused():
    with pytest.raises(ValueError, match="Linear has no group_matcher"):
        Optimizer(layer_decay=0.5).build(torch.nn.Linear(1, 1), 1)


def test_loss_options_reach_the_loss():
    loss = Loss({"focal": 2.0, "ohem": 1.0}, focal_gamma=3.0, ohem_threshold=0.5, aux_weight=0.1)
    built = tiny_task(loss=loss).loss
    assert built.terms == {"focal": 2.0, "ohem": 1.0}
    assert (built.focal_gamma, built.ohem_threshold, built.aux_weight) == (3.0, 0.5, 0.1)
    weights = tiny_task(loss=Loss(class_weights=[1.0, 2.0, 3.0])).loss.class_weights
    assert weights.tolist() == [1, 2, 3]


@pytest.mark.parametrize("supervised", [False, True])
def test_losses_are_finite_and_named(supervised):
    args = {**UNET_ARGS, "deep_supervision": supervised}
    task = SegmentationTask("unet", args, mask_classes=CLASSES)
    terms = {"cross_entropy": 1.0, "lovasz": 1.0}
    task.loss = Loss(terms).build("multiclass", None)
    losses = task.train().losses([sample(64, 64), sample(64, 64, 30, 2)])
    assert set(losses) == {*terms, "aux"} if supervised else set(terms)
    assert all(value.isfinite() for value in losses.values())


# -- pictures --------------------------------------------------------------------------------------


def test_a_mask_is_laid_over_the_image():
    image = np.full((20, 20, 3), 100, np.uint8)
    mask = np.zeros((20, 20), np.uint8)
    mask[5:15, 5:15], mask[0] = 1, 255
    drawn = draw_mask(image, mask, [(0, 0, 0), (200, 0, 50)], opacity=0.5)
    assert drawn[2, 2].tolist() == drawn[0, 0].tolist() == [100, 100, 100]
    assert drawn[10, 10].tolist() == [150, 50, 75]
    assert drawn[5, 10].tolist() == [200, 0, 50]  # the border
    assert (image == 100).all()
    with pytest.raises(ValueError, match="mask is 5x4 pixels, its image 20x20"):
        draw_mask(image, np.zeros((4, 5), np.uint8), [(1, 1, 1)])
    with pytest.raises(ValueError, match="holds label 1"):
        draw_mask(image, mask, [(1, 1, 1)])


def test_classes_of_a_multilabel_mask_are_laid_over_each_other():
    image, masks = np.zeros((8, 8, 3), np.uint8), np.ones((2, 8, 8), np.uint8)
    masks[1, :, 4:] = 0
    drawn = draw_mask(image, masks, [(200, 0, 0), (0, 200, 0)], opacity=0.5)
    assert drawn[4, 7].tolist() == [100, 0, 0] and drawn[4, 0].tolist() == [50, 100, 0]


def test_a_sheet_has_three_pictures_an_image():
    image, mask = np.full((40, 60, 3), 90, np.uint8), np.zeros((40, 60), np.uint8)
    one = draw_masks_side_by_side([image], [mask], [mask], [(0, 0, 0)])
    assert one.shape[1] > 3 * 60
    assert draw_masks_side_by_side([image] * 2, [mask] * 2, [mask] * 2, [(0, 0, 0)]).shape[0] > 80


def test_indices_keep_their_values_and_get_a_palette(tmp_path):
    from PIL import Image

    labels = np.array([[0, 1, 2], [255, 2, 1]], np.uint8)
    save_index_mask(tmp_path / "m.png", labels, [(0, 0, 0), (9, 8, 7), (1, 2, 3)])
    with Image.open(tmp_path / "m.png") as picture:
        assert picture.mode == "P"
        assert np.array_equal(np.asarray(picture), labels)
        rgb = np.asarray(picture.convert("RGB"))
    assert rgb[0, 1].tolist() == [9, 8, 7] and rgb[1, 0].tolist() == [224, 224, 192]
