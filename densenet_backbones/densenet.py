"""DenseNet classifiers: builds the network that a `DenseNetSpec` describes.

Huang et al., "Densely Connected Convolutional Networks" (1608.06993), and the DSOD bases (Shen et
al., 1708.01241). Parameters are named as in torchvision/models/densenet.py without its
``features.`` prefix; weights named otherwise are renamed as they are loaded.

Shapes: N images, C channels, H and W pixels.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from timm.layers.classifier import create_classifier
from torch import Tensor, nn

from densenet_backbones.condensenet import LearnedGroupLinear
from densenet_backbones.dense_block import Memory, list_children
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.layers import feature_modules
from densenet_backbones.messages import check_interval, check_whole
from densenet_backbones.stages import DenseStages, take_indices

__all__ = ["DenseNet", "DenseNetSpec"]


class DenseNet(DenseStages):
    """A DenseNet classifier whose children are its stages, flat and in the order they run.

    Children: ``conv0, norm0, relu0, pool0, denseblock1, transition1, pool1, ..., norm5, relu5``,
    then ``global_pool, head_drop, classifier``. Deep stems add ``conv1 ... relu2``; a CIFAR or
    CondenseNet stem is ``conv0`` alone; an unpooled transition has no pool behind it; a
    CondenseNet has pools and no transitions.

    Args:
        spec: Architecture; DenseNet-121 when left out.
        num_classes: Classes of the classifier; 0 for none (it passes its input on).
        in_chans: Channels of the image.
        global_pool: timm's pooling name: ``avg``, ``max``, ``avgmax``, ``catavgmax``; ``''`` only
            with ``num_classes=0``.
        drop_rate: Dropout before the classifier (timm's meaning); see `DenseNetSpec` for the
            dropout inside the blocks.
        memory: What training keeps for the backward pass: one of
            `dense_block.MEMORY_MODES` (see `dense_block.modes`); ``none`` keeps all.

    Attributes:
        num_features: Channels of the last feature map.
        feature_info: timm's description of the raw taps: channels, stride and module of each.

    Raises:
        ValueError: ``num_classes``, ``in_chans``, ``drop_rate`` or ``memory`` is out of range, or
            classes are asked for without pooling.
    """

    def __init__(
        self,
        spec: DenseNetSpec | None = None,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        memory: Memory = "none",
    ) -> None:
        check_whole("num_classes", num_classes, least=0)
        check_whole("in_chans", in_chans)
        check_interval("drop_rate", drop_rate, "[0, 1)")
        spec = DenseNetSpec() if spec is None else spec
        super().__init__(spec, in_chans)
        # Flat children in the order they run: a network may be cut behind any of them.
        for name, module in feature_modules(spec, in_chans):
            self.add_module(name, module)
        self.set_memory(memory)
        self.feature_names = tuple(name for name, _ in self.named_children())
        self.feature_info = _describe_raw_taps(spec, self.feature_names)
        self.num_features: int = self.feature_info[-1]["num_chs"]
        self.global_pool: nn.Module
        self.head_drop: nn.Module
        self.classifier: nn.Module
        self._set_head(num_classes, global_pool, drop_rate)
        _initialize(self, spec)

    def _set_head(self, num_classes: int, global_pool: str, drop_rate: float) -> None:
        if num_classes and not global_pool:
            raise ValueError(
                "global_pool '' leaves a map, which a classifier does not take; give num_classes=0 "
                "too, or a pooling such as 'avg'"
            )
        pool, classifier = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        factor = self.spec.classifier_condense_factor
        if isinstance(classifier, nn.Linear) and factor > 1:
            classifier = LearnedGroupLinear(classifier.in_features, num_classes, factor)
        self.num_classes = num_classes
        self.head_hidden_size = self.num_features * pool.feat_mult()
        self.global_pool, self.head_drop, self.classifier = pool, nn.Dropout(drop_rate), classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """Map an image (N, in_chans, H, W) to the last feature map, (N, num_features, H', W')."""
        return self._run_to_points(x, (), stop_early=False)[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Map the last feature map to logits, (N, num_classes), or to the classifier's input."""
        x = self.head_drop(self.global_pool(x))
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Map an image (N, in_chans, H, W) to logits (N, num_classes).

        Raises:
            ValueError: The image is smaller than one cell of the last map, or has other channels.
        """
        return self.forward_head(self.forward_features(x))

    def __prepare_scriptable__(self) -> nn.Module:
        """Return the same children in a row, for ``torch.jit.script``."""
        return nn.Sequential(OrderedDict(list_children(self))).train(self.training)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages behind the last wanted tap, and the classifier; return the indices.

        Args:
            indices: Taps to keep, as in `forward_intermediates`.
            prune_norm: Without effect; the final norm is the last tap.
            prune_head: Also drop the classifier when nothing else is dropped.
        """
        # All taps before the last wanted one stay, since the maps run through them.
        positions = take_indices(len(self.feature_info), indices)
        last = self.feature_info[positions[-1]]
        end = self.feature_names.index(last["module"]) + 1
        for name in self.feature_names[end:]:
            delattr(self, name)
        shorter = end < len(self.feature_names)
        self.feature_names = self.feature_names[:end]
        self.num_features = last["num_chs"]
        if shorter or prune_head:
            self.reset_classifier(0, "")
        return list(positions)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer that makes the logits."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one; ``global_pool=None`` keeps the pooling."""
        pool_type = self.global_pool.pool_type if global_pool is None else global_pool
        reference = next(self.parameters())
        self._set_head(num_classes, str(pool_type), float(getattr(self.head_drop, "p", 0.0)))
        for module in (self.global_pool, self.head_drop, self.classifier):
            module.to(reference.device, reference.dtype).train(self.training)


def _describe_raw_taps(spec: DenseNetSpec, names: Sequence[str]) -> list[dict[str, Any]]:
    """Describe the stem's last activation, each block and relu5, as timm's feature_info."""
    stem_end = names[names.index("denseblock1") - (1 if spec.stem_is_conv else 2)]
    taps = [(spec.num_init_features, spec.stem_stride, stem_end)]
    taps += [
        (plan.channels, plan.stride, f"denseblock{i}") for i, plan in enumerate(spec.blocks, 1)
    ]
    if spec.final_norm:
        taps[-1] = (*taps[-1][:2], "relu5")
    return [{"num_chs": c, "reduction": s, "module": module} for c, s, module in taps]


def _initialize(net: nn.Module, spec: DenseNetSpec) -> None:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            if spec.init in ("he", "he_fan_out"):
                by_inputs = spec.init == "he"
                nn.init.kaiming_normal_(module.weight, mode="fan_in" if by_inputs else "fan_out")
            else:  # Caffe's "xavier" looks at fan_in only; torch's xavier_uniform_ does not
                nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
