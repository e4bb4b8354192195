"""COCO metric of training: collects predictions over images and processes, and evaluates them.

The evaluation is pycocotools' (cocoapi, ``PythonAPI/pycocotools/cocoeval.py``); torchmetrics'
`MeanAveragePrecision` is not used because it knows no keypoints.

Legend: I images seen, n detections of one image, N detections of all, Kp keypoints an object.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from densenet_backbones.data.categories import Categories
from densenet_backbones.data.samples import GroundTruth, RunLengths
from densenet_backbones.messages import pluralize
from densenet_backbones.metrics.coco_evaluation import Backend, evaluate_coco
from densenet_backbones.metrics.coco_summary import CocoEvaluation, IouType

_COCO_KEYPOINTS = 17

PREFIXES: dict[IouType, str] = {"bbox": "", "segm": "mask_", "keypoints": "keypoint_"}
"""Prefix of a number's name where one metric evaluates several types."""

Prediction = Mapping[str, Any]
"""Detections of one image: `image_id` and arrays or tensors, see `CocoMetric.update`."""


class CocoResult(TypedDict):
    """Detection in COCO's results form; `bbox` is xywh in pixels."""

    image_id: int
    category_id: int
    bbox: list[float]
    score: float
    segmentation: NotRequired[RunLengths]
    keypoints: NotRequired[list[float]]


class CocoMetric(Metric):
    """COCO's numbers of the images given to `update`, on one process or on many.

    Evaluated are the images given to `update`, no others: with `limit_val_batches`, or in
    Lightning's sanity check, the numbers are those of that part of the set. An image without any
    detection counts with all its objects missed, as long as it was given. An image given again
    (a padding sampler does that) counts once, with the predictions that came first; the order of
    an image's detections is kept, because it decides between equal scores.

    States are flat tensors of one type each, so that torchmetrics can gather them over processes;
    with the NCCL backend they must be on the GPU: make the metric an attribute of the module.

    Args:
        ground_truth: COCO's JSON form of the whole set (`DetectionSet.ground_truth`).
        categories: The evaluated set's classes: they tie labels and keypoints of the model to
            the ids, and the order of keypoints, of the file that `ground_truth` comes from.
        iou_type: "bbox", "segm" or "keypoints"; or several of them, all evaluated on the same
            detections: the numbers of masks and keypoints are then called mask_AP, keypoint_AP, ….
        backend: "pycocotools" or "faster_coco_eval".
        keypoint_sigmas: One OKS constant a keypoint, for "keypoints"; None takes COCO's 17.

    Attributes:
        evaluation: Result of the last `compute` for the first type, with classes and curves; None
            before.
        evaluations: Result of the last `compute` for each type.
        results: Predictions of the last `compute` in COCO's results form.
        images: Ids of the images of the last `compute`, in the order of arrival.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True

    image_ids: list[Tensor]  # (I,) int64
    counts: list[Tensor]  # (I,) int64, detections of each image
    boxes: list[Tensor]  # (4 N,) xyxy
    scores: list[Tensor]  # (N,)
    labels: list[Tensor]  # (N,) int64
    keypoints: list[Tensor]  # (3 Kp N,) x, y, v
    mask_sizes: list[Tensor]  # (N,) int64, bytes of each run-length code
    mask_codes: list[Tensor]  # uint8, the codes one after the other

    def __init__(
        self,
        ground_truth: GroundTruth,
        categories: Categories,
        iou_type: IouType | Sequence[IouType] = "bbox",
        backend: Backend = "pycocotools",
        keypoint_sigmas: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.ground_truth, self.categories = ground_truth, categories
        self.iou_types = (iou_type,) if isinstance(iou_type, str) else tuple(iou_type)
        self.backend, self.keypoint_sigmas = backend, keypoint_sigmas
        if not self.iou_types:
            raise ValueError("iou_type names nothing to evaluate; give 'bbox' or several types")
        for one_type in self.iou_types:
            # Fails here, and not after the first epoch, for a wrong type or a missing backend.
            evaluate_coco(ground_truth, [], one_type, (), backend, keypoint_sigmas)
        # Flat states of one type each: torchmetrics gathers tensors, no dictionaries.
        self._sizes = {int(i["id"]): (i["height"], i["width"]) for i in ground_truth["images"]}
        self._types = {
            "image_ids": torch.int64,
            "counts": torch.int64,
            "boxes": torch.float64,
            "scores": torch.float64,
            "labels": torch.int64,
        }
        if "keypoints" in self.iou_types:
            self._types["keypoints"] = torch.float64
        if "segm" in self.iou_types:
            self._types |= {"mask_sizes": torch.int64, "mask_codes": torch.uint8}
        for name in self._types:
            self.add_state(name, default=[], dist_reduce_fx="cat")
        self.evaluation: CocoEvaluation | None = None
        self.evaluations: dict[IouType, CocoEvaluation] = {}
        self.results: list[CocoResult] = []
        self.images: list[int] = []

    def update(self, predictions: Sequence[Prediction]) -> None:
        """Add the detections of some images.

        Args:
            predictions: One dict an image: `image_id` (int), `boxes` (n, 4) xyxy in pixels of the
                image as it is in the data set (not of the model's input), `scores` (n,), `labels`
                (n,) in ``1 .. K - 1``; for "segm" also `masks`, n compressed run-length codes
                ``{"size": [H, W], "counts": ...}``; for "keypoints" also `keypoints` (n, Kp, 3).
                Any order, any number, n may be 0.

        Raises:
            ValueError: If an image or a label is unknown, a shape is wrong or a number not finite.
        """
        for prediction in predictions:
            for name, values in self._flatten(prediction).items():
                getattr(self, name).append(values.to(self.device, self._type(name)))

    def compute(self) -> dict[str, float]:
        """Return COCO's numbers by name (see `CocoEvaluation.numbers`), NaN where not defined."""
        # The states hold all processes' images by now, in flat tensors.
        predictions = self._restore_predictions()
        self.images = [p["image_id"] for p in predictions]
        self.results = format_coco_results(predictions, self.categories)
        self.evaluations = {
            one_type: evaluate_coco(
                self.ground_truth,
                self.results,
                one_type,
                self.images,
                self.backend,
                self.keypoint_sigmas,
            )
            for one_type in self.iou_types
        }
        self.evaluation = self.evaluations[self.iou_types[0]]
        if len(self.iou_types) == 1:
            return self.evaluation.numbers
        return {
            f"{PREFIXES[one_type]}{name}": value
            for one_type, evaluation in self.evaluations.items()
            for name, value in evaluation.numbers.items()
        }

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Synchronize as `Metric.sync`; a process without images sends empty states of right type.

        torchmetrics would send float32 for them, which the other processes' types do not fit.
        """
        for name in self._types:
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                empty = torch.zeros(0, dtype=self._type(name), device=self.device)
                setattr(self, name, [empty])
        super().sync(*args, **kwargs)

    def _type(self, name: str) -> torch.dtype:
        """Return a state's type; boxes and scores are float64 except on MPS, which has none."""
        dtype = self._types[name]
        return torch.float32 if self.device.type == "mps" and dtype.is_floating_point else dtype

    def _flatten(self, prediction: Prediction) -> dict[str, Tensor]:
        """Check one image's predictions, and return its part of each state."""
        image_id = int(prediction["image_id"])
        if image_id not in self._sizes:
            raise ValueError(
                f"image_id {image_id} is not among the {pluralize(len(self._sizes), 'image')} of "
                "the ground truth; give each prediction the image_id of its sample"
            )
        # Rows and the shape that each must have; wrong ones would be evaluated without an error.
        boxes, scores, labels = (
            torch.as_tensor(prediction[name]).detach() for name in ("boxes", "scores", "labels")
        )
        n = len(scores)
        rows = {"boxes": boxes, "scores": scores, "labels": labels}
        shapes = {"boxes": (n, 4), "scores": (n,), "labels": (n,)}
        if "keypoints" in self._types:
            rows["keypoints"] = torch.as_tensor(prediction["keypoints"]).detach()
            shapes["keypoints"] = (n, len(self.keypoint_sigmas or range(_COCO_KEYPOINTS)), 3)
        for name, shape in shapes.items():
            if tuple(rows[name].shape) != shape:
                raise ValueError(
                    f"predictions of image {image_id}: {name} must have the shape {shape}, one row "
                    f"a score, got {tuple(rows[name].shape)}"
                )
            if not torch.isfinite(rows[name]).all():
                raise ValueError(f"predictions of image {image_id}: {name} holds NaN or infinity")
        if n and not 1 <= int(labels.min()) <= int(labels.max()) < self.categories.num_classes:
            raise ValueError(
                f"predictions of image {image_id}: labels must lie in "
                f"[1, {self.categories.num_classes - 1}] (0 is the background), got "
                f"{int(labels.min())} to {int(labels.max())}"
            )
        if "mask_codes" in self._types:
            rows |= self._flatten_masks(image_id, prediction["masks"], n)
        rows |= {"image_ids": torch.tensor([image_id]), "counts": torch.tensor([n])}
        return {name: values.reshape(-1) for name, values in rows.items()}

    def _flatten_masks(self, image_id: int, masks: Sequence[Any], n: int) -> dict[str, Tensor]:
        if len(masks) != n or any(tuple(m["size"]) != self._sizes[image_id] for m in masks):
            raise ValueError(
                f"predictions of image {image_id}: masks must be {n} run-length codes of size "
                f"{self._sizes[image_id]} (H, W), one a score"
            )
        codes = [m["counts"] for m in masks]
        raw = [code.encode("ascii") if isinstance(code, str) else code for code in codes]
        return {
            "mask_sizes": torch.tensor([len(code) for code in raw], dtype=torch.int64),
            "mask_codes": torch.tensor(list(b"".join(raw)), dtype=torch.uint8),
        }

    def _restore_predictions(self) -> list[Prediction]:
        """Split the states into predictions, every image once, in the order of arrival."""
        # Lists before torchmetrics gathers, tensors after; `sync` leaves none without a tensor.
        states = {name: dim_zero_cat(getattr(self, name)).cpu() for name in self._types}
        # Rows of each image.
        counts = states["counts"].tolist()
        parts = {name: torch.split(states[name], counts) for name in ("scores", "labels")}
        parts["boxes"] = torch.split(states["boxes"].reshape(-1, 4), counts)
        if "keypoints" in states:
            rows = (
                states["keypoints"].reshape(sum(counts), -1, 3) if sum(counts) else torch.zeros(0)
            )
            parts["keypoints"] = torch.split(rows, counts)
        codes: list[bytes] = []
        if "mask_codes" in states:
            pieces = torch.split(states["mask_codes"], states["mask_sizes"].tolist())
            codes = [piece.numpy().tobytes() for piece in pieces]
        # One prediction an image: the first one given counts.
        predictions: dict[int, Prediction] = {}
        first = 0
        for i, image_id in enumerate(int(j) for j in states["image_ids"].tolist()):
            prediction: dict[str, Any] = {name: part[i] for name, part in parts.items()}
            prediction["image_id"] = image_id
            if "mask_codes" in states:
                size = list(self._sizes[image_id])
                own = codes[first : first + counts[i]]
                prediction["masks"] = [{"size": size, "counts": code} for code in own]
            first += counts[i]
            predictions.setdefault(image_id, prediction)
        return list(predictions.values())


def format_coco_results(
    predictions: Sequence[Prediction], categories: Categories
) -> list[CocoResult]:
    """Convert predictions to COCO's results form, ready for `json.dump`.

    Args:
        predictions: Detections of each image, as `CocoMetric.update` takes them.
        categories: The evaluated set's classes: they give the category id of each label, and the
            order of keypoints in its file.

    Returns:
        One dict a detection, in the given order: image_id, category_id, score, bbox (xywh in
        pixels) and, where the predictions have them, segmentation (compressed RLE, ASCII) and
        keypoints (x, y, v, ...). Numbers are plain and not rounded.

    Raises:
        KeyError: If a label is not one of the categories.
    """
    results: list[CocoResult] = []
    for prediction in predictions:
        boxes = torch.as_tensor(prediction["boxes"]).detach().cpu().double().reshape(-1, 4)
        # In float64, so that corners can be had back from the sides.
        sides = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()
        scores = torch.as_tensor(prediction["scores"]).tolist()
        labels = torch.as_tensor(prediction["labels"]).tolist()
        for i, (box, score, label) in enumerate(zip(sides, scores, labels, strict=True)):
            result: CocoResult = {
                "image_id": int(prediction["image_id"]),
                "category_id": categories.id_of_label(int(label)),
                "bbox": box,
                "score": score,
            }
            if "masks" in prediction:
                mask = prediction["masks"][i]
                counts = mask["counts"]
                text = counts.decode("ascii") if isinstance(counts, bytes) else counts
                result["segmentation"] = {"size": list(mask["size"]), "counts": text}
            if "keypoints" in prediction:
                points = torch.as_tensor(prediction["keypoints"][i])
                points = categories.put_in_file_order(points)
                result["keypoints"] = points.double().flatten().tolist()
            results.append(result)
    return results
