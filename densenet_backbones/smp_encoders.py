"""Native encoders of segmentation_models.pytorch (smp): ``smp.Unet("densenet121_features")``.

Importing this module registers ``<variant>_features`` with smp, timm's names, for every member of
the family with maps of strides 2, 4, 8, 16 and 32. ``import densenet_backbones`` does not import
it: smp's universal names, ``tu-densenet121_features``, need no more than that. Of a CondenseNet's
two maps at stride 2 the second is read; smp's universal names refuse equal strides, so these nets
have native names only.

Every level is the raw tap of `features`' table. smp's own densenet encoders read the ``norm`` tap,
and end in ``norm5`` without the ReLU behind it; with ``tap="norm"`` the levels before the last are
theirs bit for bit. smp drops arguments it does not know, so other taps, memory modes and widths
have names of their own: ``register_encoder("slim121", tap="compressed", memory="layer")``.

Names registered so take every decoder of smp but DPT, which takes ``tu-`` names only. Other than
smp's own, they take ``encoder_output_stride`` 8 and 16.

Weights: ``ra_in1k``, ``tv_in1k`` from timm's repositories on the Hub, where timm has them, and
smp's ``imagenet``. smp expects mean and deviation in another place of ``config.json`` than timm
writes them, so ``smp.encoders.get_preprocessing_params`` is replaced by a function that knows them
and leaves all other names to smp's.

Of smp's decoders Unet takes images of any size. The others want multiples of
``encoder.output_stride``, and, compiled or traced, do not check: some then return masks of another
size than the image. `PadToStride` gives them any size.

Shapes: N images, K classes, H and W pixels.
"""

import dataclasses
from functools import wraps
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import segmentation_models_pytorch.encoders as smp_registry
    from segmentation_models_pytorch.encoders._base import EncoderMixin
except ImportError as error:
    raise ImportError(
        "densenet_backbones.smp_encoders registers encoders with segmentation_models.pytorch, "
        "which is not installed; pip install segmentation-models-pytorch"
    ) from error

from densenet_backbones.checkpoints import to_ours
from densenet_backbones.dense_block import Memory, check_memory
from densenet_backbones.densenet import DenseNet, DenseNetSpec
from densenet_backbones.features import DenseFeatureNet, Tap
from densenet_backbones.messages import check_choice
from densenet_backbones.timm_models import SUFFIX, default_cfgs
from densenet_backbones.variants import VARIANTS

__all__ = ["DenseFeatureEncoder", "PadToStride", "register_encoder"]

PadMode = Literal["constant", "reflect", "replicate"]

_STRIDES = (2, 4, 8, 16, 32)  # smp's encoders halve the image once a level
_OUTPUT_STRIDES = (8, 16, 32)
_TAPS = ("raw", "norm", "compressed")  # those with smp's strides


class DenseFeatureEncoder(nn.Module, EncoderMixin):
    """A `DenseFeatureNet` as an encoder of smp.

    Args:
        spec: Architecture; its maps have strides 2, 4, 8, 16 and 32.
        tap: ``raw``, ``norm`` or ``compressed``.
        memory: What training keeps for the backward pass; see `DenseFeatureNet.set_memory`.
        depth: Levels beside the image, 1 to 5; stages behind the last are left out.
        output_stride: Pixels per cell of the last map at depth 5: 8, 16 or 32.

    Attributes:
        model: The feature net, under the name it has in smp's ``tu-`` encoders: parameters have
            equal names by both routes. ``encoder.model.freeze(2)`` freezes the first stages.

    Raises:
        ValueError: An argument is outside its range.
    """

    def __init__(
        self,
        spec: DenseNetSpec,
        tap: Tap = "raw",
        memory: Memory = "none",
        depth: int = 5,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if depth not in range(1, len(_STRIDES) + 1):
            raise ValueError(f"encoder depth must be 1 to {len(_STRIDES)}, got {depth}")
        _check_arguments(spec, tap, memory)
        self._depth = depth
        self._in_channels = 3
        self._tap: Tap = tap
        self._output_stride = _check_stride(output_stride)
        self._positions = _list_positions(spec)
        self.model = self._build_feature_net(spec, memory)
        self._out_channels = [self._in_channels, *self.model.out_channels]

    def _build_feature_net(self, spec: DenseNetSpec, memory: Memory) -> DenseFeatureNet:
        spec = dataclasses.replace(spec, output_stride=self._output_stride)
        net = DenseNet(spec, num_classes=0, in_chans=self._in_channels, memory=memory)
        return DenseFeatureNet(net, self._positions[: self._depth], self._tap)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Map an image (N, in_channels, H, W) to itself and ``depth`` maps.

        Raises:
            ValueError: As `DenseFeatureNet.forward`.
        """
        features = [x]
        features.extend(self.model(x))  # TorchScript does not know [x, *maps]
        return features

    def set_in_channels(self, in_channels: int, pretrained: bool = True) -> None:
        """Replace the weights of the first convolution by weights for other images.

        Args:
            in_channels: Channels of the image.
            pretrained: Whether to make the new weights of the old ones: their sum for one channel,
                else the three over and over, scaled to keep the sum. If not, they are random.

        Raises:
            ValueError: ``in_channels`` is below 1, or was changed before.
        """
        if in_channels == self._in_channels:
            return
        if in_channels < 1 or self._in_channels != 3:
            raise ValueError(
                "in_channels must be 1 or more and may be changed from 3 once, not from "
                f"{self._in_channels} to {in_channels}; build another encoder"
            )
        super().set_in_channels(in_channels, pretrained)
        self.model.in_chans = in_channels

    def make_dilated(self, output_stride: int) -> None:
        """Change the output stride of a net that may be trained: see `DenseNetSpec.output_stride`.

        Every cell keeps its value; a finer map has new cells between them. Parameters stay the same
        objects. Hooks on the net are lost.

        Args:
            output_stride: 8, 16, or 32 for no dilation.

        Raises:
            ValueError: ``output_stride`` is none of these.
        """
        if _check_stride(output_stride) == self._output_stride:
            return
        self._output_stride = output_stride
        old, weights = self.model, self.model.state_dict(keep_vars=True)
        trained = [weight.requires_grad for weight in weights.values()]
        modes = {name: module.training for name, module in old.named_modules()}
        # Blur filters are no weights, so the new net's own must move to the device and type too.
        new = self._build_feature_net(old.spec, old.memory).to(next(old.parameters()))
        new.load_state_dict(weights, assign=True)
        for weight, requires_grad in zip(weights.values(), trained, strict=True):
            weight.requires_grad_(requires_grad)
        for name, module in new.named_modules():
            module.training = modes[name]
        new.frozen_stages = old.frozen_stages
        self.model = new

    def train(self, mode: bool = True) -> "DenseFeatureEncoder":
        """Set the training mode; stages frozen by ``model.freeze`` are frozen again.

        smp's ``unfreeze_encoder`` sets all of the encoder free, those stages too.
        """
        super().train(mode)
        # torch.jit.script puts what it scripts into the place of the net.
        if isinstance(self.model, DenseFeatureNet):
            self.model.freeze(self.model.frozen_stages)
        return self

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Read other libraries' names, such as those of smp's own densenet encoders."""
        keys = [key for key in state_dict if key.startswith(prefix)]
        if any(not key.startswith(f"{prefix}model.") for key in keys):
            renamed = to_ours({key.removeprefix(prefix): state_dict.pop(key) for key in keys})
            state_dict.update({f"{prefix}model.{key}": renamed[key] for key in renamed})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _check_stride(output_stride: int) -> int:
    check_choice("output_stride", output_stride, _OUTPUT_STRIDES)
    return output_stride


def _list_strides(spec: DenseNetSpec) -> tuple[int, ...]:
    return (spec.stem_stride, *(plan.stride for plan in spec.blocks))


def _list_positions(spec: DenseNetSpec) -> tuple[int, ...]:
    """List the taps that are read: of those of one stride the last."""
    strides = _list_strides(dataclasses.replace(spec, output_stride=None))
    return tuple({stride: position for position, stride in enumerate(strides)}.values())


def _has_strides(spec: DenseNetSpec) -> bool:
    return tuple(dict.fromkeys(_list_strides(spec))) == _STRIDES


def _check_arguments(spec: DenseNetSpec, tap: str, memory: str) -> None:
    if not _has_strides(spec):
        raise ValueError(
            f"smp wants maps of strides {_STRIDES}, and this network's are {_list_strides(spec)}; "
            "choose an ImageNet or deep stem and four blocks with a pool after each but the last, "
            "or a CondenseNet's stem and five"
        )
    check_choice("tap", tap, _TAPS)  # those with smp's strides
    check_memory(memory)


# --------------------------------------------------------------------------- registration


def register_encoder(
    name: str,
    variant: str = "densenet121",
    *,
    tap: Tap = "raw",
    memory: Memory = "none",
    **fields: Any,
) -> None:
    """Add an encoder to smp's native ones, for ``smp.Unet(name, encoder_weights=None)`` and so on.

    Args:
        name: Its name in ``smp.encoders.encoders``.
        variant: The member of the family it is or departs from; one of `VARIANTS`.
        tap: Where blocks are read: ``raw``, ``norm`` or ``compressed`` (see `features`).
        memory: What training keeps for the backward pass: one of
            `dense_block.MEMORY_MODES`; ``none`` keeps all.
        **fields: Fields of `DenseNetSpec` that differ, such as ``growth_rate=16`` or
            ``norm="group"``. The variant's published weights stay on offer, and load where they
            fit. ``output_stride`` is smp's own argument, ``encoder_output_stride``.

    Raises:
        ValueError: The name is taken or not a native one, there is no such variant or field, an
            argument is outside its range, or the network's strides are not 2, 4, 8, 16, 32.
    """
    if name in smp_registry.encoders:
        raise ValueError(f"smp has an encoder {name!r} already; choose another name")
    if name.startswith(("tu-", "timm-")):
        raise ValueError(
            f"smp does not look for {name!r} among its native encoders; choose a name that does "
            "not begin with 'tu-' or 'timm-'"
        )
    check_choice("variant", variant, VARIANTS)
    if "output_stride" in fields:
        raise ValueError(
            "output_stride belongs to smp's models; leave it out, and give them "
            "encoder_output_stride"
        )
    spec = DenseNetSpec.from_dict(VARIANTS[variant].to_dict() | fields)
    _check_arguments(spec, tap, memory)
    smp_registry.encoders[name] = {
        "encoder": DenseFeatureEncoder,
        "params": {"spec": spec, "tap": tap, "memory": memory},
        "pretrained_settings": _pretrained_settings(variant),
    }


def _pretrained_settings(variant: str) -> dict[str, dict[str, object]]:
    """Return where smp finds published weights, by tag; timm's with the input they expect."""
    smps_own = smp_registry.encoders.get(variant, {}).get("pretrained_settings", {})
    settings = {tag: dict(setting) for tag, setting in smps_own.items()}
    for tag, cfg in default_cfgs[variant + SUFFIX].cfgs.items():
        if cfg.hf_hub_id:
            repository, _, revision = cfg.hf_hub_id.partition("@")
            settings[tag] = {
                "repo_id": repository,
                "revision": revision or "main",
                "input_space": "RGB",
                "input_range": [0, 1],
                "mean": list(cfg.mean),
                "std": list(cfg.std),
            }
    return settings


_smps_preprocessing_params = smp_registry.get_preprocessing_params


@wraps(_smps_preprocessing_params)
def _get_preprocessing_params(encoder_name: str, pretrained: str = "imagenet") -> dict[str, object]:
    entry = smp_registry.encoders.get(encoder_name, {})
    setting = entry.get("pretrained_settings", {}).get(pretrained, {})
    if entry.get("encoder") is not DenseFeatureEncoder or "mean" not in setting:
        smps_own: dict[str, object] = _smps_preprocessing_params(encoder_name, pretrained)
        return smps_own
    return {key: setting[key] for key in ("input_space", "input_range", "mean", "std")}


for _variant, _spec in VARIANTS.items():
    if _has_strides(_spec):
        register_encoder(_variant + SUFFIX, _variant)
smp_registry.get_preprocessing_params = _get_preprocessing_params


# --------------------------------------------------------------------------- any image size


class PadToStride(nn.Module):
    """Wrapper that lets a model of smp take any image size: pads right and bottom, crops masks.

    Masks equal those of the image padded by hand. Save the weights of ``model``, not of this.
    ``torch.export`` leaves the number of images open; for open sizes export ``model`` itself, with
    multiples of ``stride``.

    Args:
        model: Any segmentation model of smp; images are padded to multiples of its
            ``encoder.output_stride``.
        mode: What the border holds: ``constant``, or the image itself, mirrored (``reflect``: at
            most one pixel less than the image has) or its last row and column (``replicate``).
        value: The constant, in units of the normalized image, where 0 is the mean color.

    Attributes:
        model: The wrapped model.
        stride: Pixels; both sides of the padded image are multiples of it.

    Raises:
        ValueError: ``model`` has no ``encoder.output_stride``, ``mode`` is unknown, or ``value`` is
            set for another mode than ``constant``.
    """

    __jit_unused_properties__ = ("encoder",)  # TorchScript returns no modules

    def __init__(self, model: nn.Module, mode: PadMode = "constant", value: float = 0.0) -> None:
        super().__init__()
        stride = getattr(getattr(model, "encoder", None), "output_stride", None)
        if not isinstance(stride, int):
            raise ValueError(
                "PadToStride needs a model of segmentation_models.pytorch, with "
                f"encoder.output_stride, got {type(model).__name__}"
            )
        check_choice("mode", mode, get_args(PadMode))
        if value and mode != "constant":
            raise ValueError(f"value={value} has no effect with mode={mode!r}; leave one of them")
        self.model = model
        self.mode: str = mode
        self.value = float(value)
        self.stride = stride

    @property
    def encoder(self) -> nn.Module:
        """The model's encoder."""
        return self.model.get_submodule("encoder")

    def forward(self, x: Tensor) -> Any:
        """Map images (N, C, H, W) to masks (N, K, H, W), with labels if the model has that head.

        A model with less upsampling than smp's default returns masks of a part of that size,
        rounded up.
        """
        height, width = x.shape[-2], x.shape[-1]
        rows = (height + self.stride - 1) // self.stride * self.stride
        columns = (width + self.stride - 1) // self.stride * self.stride
        padding = [0, columns - width, 0, rows - height]
        out = self.model(F.pad(x, padding, self.mode, self.value))
        masks = out[0] if isinstance(out, tuple) else out
        # Pixels per cell of the masks; the last cells may begin within the image and end outside.
        scale = rows // masks.shape[-2]
        if scale * masks.shape[-2] != rows:
            raise ValueError(
                f"the model returns masks {masks.shape[-2]} high for images {rows} high, which "
                "cannot be cropped; choose upsampling so that images are a multiple of masks"
            )
        top, left = (height + scale - 1) // scale, (width + scale - 1) // scale
        masks = masks[..., :top, :left]
        return (masks, out[1]) if isinstance(out, tuple) else masks

    @torch.inference_mode()
    def predict(self, x: Tensor) -> Any:
        """Run `forward` in eval mode and without gradients, as smp's ``predict`` does."""
        return self.eval()(x)
