"""Base class of networks and feature nets: runs a DenseNet's stages, freezes and loads them.

Shapes: N images, C channels, H and W pixels.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
from timm.models._manipulate import MATCH_PREV_GROUP
from torch import Tensor, nn

from densenet_backbones.checkpoints import CLASSIFIER, CheckpointError, recognize, to_ours
from densenet_backbones.dense_block import (
    Memory,
    calls_children_in_turn,
    has_hooks,
    has_shared_buffer,
    join_lean_steps,
    list_children,
    run_lean,
)
from densenet_backbones.densenet_spec import DenseNetSpec
from densenet_backbones.layers import DenseBlock, get_memory, is_traced, set_memory
from densenet_backbones.messages import check_choice, check_whole, to_plain

__all__ = ["DenseStages", "take_indices"]


class DenseStages(nn.Module):
    """Stages of a DenseNet, flat and in the order they run; base of `DenseNet` and its feature net.

    Args:
        spec: Architecture.
        in_chans: Channels of the image.

    Attributes:
        feature_names: Names of the children that make features, in the order they run.
        feature_info: timm's description of the taps: channels, stride and module of each.
    """

    feature_names: tuple[str, ...]
    feature_info: Any

    def __init__(self, spec: DenseNetSpec, in_chans: int) -> None:
        super().__init__()
        self.spec = spec
        self.in_chans = in_chans
        self.frozen_stages = 0
        self.feature_names = ()
        # Weights of the whole network which this part of it does not have.
        self._weights_beyond: frozenset[str] = frozenset()

    # ------------------------------------------------------------------------ running

    def _smallest_image(self) -> int:
        """Side in pixels below which the last stage's maps would be empty."""
        return self.spec.nominal_stride

    def _check_image(self, x: Tensor) -> None:
        # Traced and compiled nets carry no checks: those would pin down dynamic sizes.
        if torch.compiler.is_compiling() or is_traced(x):
            return
        if x.ndim != 4 or x.shape[1] != self.in_chans:
            raise ValueError(
                f"images must be a (N, {self.in_chans}, H, W) tensor, got {tuple(x.shape)}"
            )
        smallest = self._smallest_image()
        if min(x.shape[2:]) < smallest:
            raise ValueError(
                f"images must have {smallest} pixels or more on each side, one cell of the "
                f"coarsest map, got {x.shape[2]}x{x.shape[3]}; resize them, or take fewer taps"
            )

    def _run_to_points(
        self, x: Tensor, points: Collection[str], stop_early: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the stages; return the last map, and the maps at ``points`` in the order they come.

        Points are children (``denseblock1``), a transition's activation (``transition1.relu``), and
        what a block holds after one of its layers (``denseblock1.denselayer2``).
        """
        self._check_image(x)
        maps: dict[str, Tensor] = {}
        for name, step in self._choose_steps(x, points):
            stage = getattr(self, name)
            if f"{name}.relu" in points:
                x, maps[f"{name}.relu"] = _run_tapped(stage, name, x, lean=step is not stage)
            else:
                x = step(x)
            if any(point.startswith(f"{name}.denselayer") for point in points):
                for layer, width in _list_widths(stage, name):
                    if f"{name}.{layer}" in points:
                        # A block's maps are stacked in the order they are made. The clone is
                        # dense in memory, in the order of the block's own layout.
                        maps[f"{name}.{layer}"] = x[:, :width].clone()
            if name in points:
                maps[name] = x
            if stop_early and len(maps) == len(points):
                break
        return x, maps

    def _choose_steps(
        self, x: Tensor, points: Collection[str]
    ) -> Iterable[tuple[str, Callable[[Tensor], Tensor]]]:
        """Return the stages by name, or steps that keep less, by the name of their last stage."""
        stages = [(name, getattr(self, name)) for name in self.feature_names]
        keeps = has_shared_buffer(self.memory) and torch.is_grad_enabled() and self.training
        # Compilers decide by themselves what to keep of simple stages.
        if not keeps or torch.compiler.is_compiling() or is_traced(x):
            return stages
        return join_lean_steps(stages, points)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the taps of `feature_info` and the last feature map, as timm's models do.

        Args:
            x: Image, (N, in_chans, H, W).
            indices: Taps to return: all when None, the last n for an int.
            norm: Without effect; the last tap is the normed one.
            stop_early: End after the last of these taps.
            output_fmt: Only ``NCHW``.
            intermediates_only: Return the list of taps alone.

        Raises:
            ValueError: ``output_fmt`` is not ``NCHW``, or an index is refused by `take_indices`.
        """
        check_choice("output_fmt", output_fmt, ("NCHW",))
        info = self.feature_info
        names = [info[i]["module"] for i in take_indices(len(info), indices)]
        x, maps = self._run_to_points(x, names, stop_early)
        missing = [name for name in names if name not in maps]
        if missing:
            raise ValueError(
                f"this net ends before {missing[0]!r}; ask for earlier taps, or build it with "
                "more out_indices"
            )
        return list(maps.values()) if intermediates_only else (x, list(maps.values()))

    # ------------------------------------------------------------------------ training

    def set_memory(self, memory: Memory) -> None:
        """Choose what training keeps for the backward pass: see `layers.set_memory`."""
        set_memory(self, memory)

    @property
    def memory(self) -> Memory:
        """Memory mode of training; `set_memory` changes it."""
        return get_memory(self) or "none"  # without blocks: the stem alone

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Switch ``memory="layer"`` on or off, as timm's models name it."""
        self.set_memory("layer" if enable else "none")

    def freeze(self, stages: int) -> None:
        """Freeze the first stages: no gradients, and norms and dropout stay in eval mode.

        ``train()`` leaves frozen stages in eval mode. Stages frozen earlier and no longer among the
        first ones are trained again.

        Args:
            stages: 0 for none, 1 for the stem, 1 + i up to block i and the transition behind it.

        Raises:
            ValueError: There are fewer stages.
        """
        children = self.stage_children()
        if not 0 <= stages < len(children) + 1:
            raise ValueError(
                f"stages must be 0 to {len(children)} (the stem and "
                f"{len(children) - 1} blocks), got {stages}"
            )
        for i, modules in enumerate(children):
            if i < max(stages, self.frozen_stages):
                for module in modules:
                    module.requires_grad_(i >= stages).train(self.training and i >= stages)
        self.frozen_stages = stages

    def stage_children(self) -> list[list[nn.Module]]:
        """Return the children of the stem, then those of each block up to the next one."""
        stages: list[list[nn.Module]] = [[]]
        for name in self.feature_names:
            if name.startswith("denseblock"):
                stages.append([])
            stages[-1].append(getattr(self, name))
        return stages

    def train(self, mode: bool = True) -> "DenseStages":
        """Set the training mode of all but the frozen stages."""
        super().train(mode)
        for modules in self.stage_children()[: self.frozen_stages]:
            for module in modules:
                module.eval()
        return self

    def group_matcher(self, coarse: bool = False) -> dict[str, object]:
        """Return the patterns by which timm's optimizers give layers their own learning rate."""
        layers: list[tuple[str, tuple[int, ...] | None]] = [
            (r"^denseblock(\d+)\.denselayer(\d+)", None),
            (r"^transition(\d+)", MATCH_PREV_GROUP),
        ]
        blocks = r"^(?:denseblock|transition)(\d+)" if coarse else layers
        return {"stem": r"^(?:conv|norm)[012]\.", "blocks": blocks}

    # ------------------------------------------------------------------------ weights

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load weights named as here, or as in torchvision, timm and others (see `checkpoints`).

        Weights of stages that are not here are left out.

        Raises:
            RuntimeError: They do not fit; it says what they seem to be.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            try:
                description = recognize(state_dict).describe()
            except CheckpointError as unknown:
                description = str(unknown)
            raise RuntimeError(f"{error}\n\tWhat these weights are: {description}.") from error

    def _load_from_state_dict(
        self, state_dict: dict[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Rename other libraries' keys, and leave out the weights of stages that are not here."""
        own_weights = {key: state_dict[key] for key in state_dict if key.startswith(prefix)}
        ours = self.state_dict().keys()
        if any(key.removeprefix(prefix) not in ours for key in own_weights):
            renamed = to_ours({key.removeprefix(prefix): own_weights[key] for key in own_weights})
            for key in own_weights:
                del state_dict[key]
            has_classifier = any(key.startswith(CLASSIFIER) for key in ours)
            for key, value in renamed.items():
                # What a mask leaves out is 0 in the weights: a plain classifier needs none.
                masked = key in ("classifier.mask", "classifier.stage") and key not in ours
                beyond = masked or key in self._weights_beyond
                if not beyond and (has_classifier or not key.startswith(CLASSIFIER)):
                    state_dict[prefix + key] = value
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _run_tapped(stage: nn.Module, name: str, x: Tensor, lean: bool) -> tuple[Tensor, Tensor]:
    """Run a transition; return what it returns and what its activation returns.

    Args:
        stage: A transition, or what was put in its place.
        name: Its name.
        x: (N, C, H, W).
        lean: Keep less of norm and activation, as `run_lean` does.

    Raises:
        ValueError: It does not run an activation ``relu`` once.
    """
    parts = dict(list_children(stage))
    in_turn = calls_children_in_turn(stage) and "relu" in parts
    split = list(parts).index("relu") + 1 if in_turn else 0
    head, rest = list(parts.values())[:split], list(parts.values())[split:]
    if in_turn and not has_hooks(stage):
        tapped = run_lean(x, head) if lean and len(head) == 2 else _run_in_turn(x, head)
        return _run_in_turn(tapped, rest), tapped
    if in_turn and not rest:  # cut off behind a last tap
        x = stage(x)
        return x, x
    # What has hooks or a forward of its own runs as a whole, and is watched from within: at what
    # reads the tap if that is known, as full backward hooks act behind forward hooks.
    maps: list[Tensor] = []
    watch: AbstractContextManager[object] = nullcontext()
    if in_turn:
        watch = rest[0].register_forward_pre_hook(
            lambda _, args: maps.append(args[0]), prepend=True
        )
    elif "relu" in parts:
        watch = parts["relu"].register_forward_hook(lambda _, args, out: maps.append(out))
    with watch:
        x = stage(x)
    if len(maps) != 1:
        raise ValueError(
            f"the norm tap reads {name}.relu, which {name} ({type(stage).__name__}) does not run "
            "once; choose another tap, or leave the transition as it was built"
        )
    return x, maps[0]


def _run_in_turn(x: Tensor, modules: Iterable[nn.Module]) -> Tensor:
    for module in modules:
        x = module(x)
    return x


def _list_widths(stage: nn.Module, name: str) -> list[tuple[str, int]]:
    """List the layers of a block, and the channels of the concatenation with each one's maps."""
    try:
        return list(cast(DenseBlock, stage).widths())
    except AttributeError as error:
        raise ValueError(
            f"layer taps need the channels of every layer of {name}, of which one was replaced "
            f"({error}); choose other taps, or subclass DenseLayer"
        ) from error


def take_indices(count: int, indices: int | Iterable[int] | None) -> tuple[int, ...]:
    """Resolve timm's ``out_indices`` to positions.

    Args:
        count: Number of taps there are.
        indices: None for all taps, n >= 1 for the last n, or positions in ascending order, where
            -1 is the last tap.

    Returns:
        Positions in 0..count-1, ascending.

    Raises:
        ValueError: There is nothing to take, a position does not exist, or the order is not
            ascending (features come in the order of the network, so another order would put
            channels and strides beside the wrong maps).
    """
    if indices is None:
        return tuple(range(count))
    indices = to_plain(indices)
    if isinstance(indices, int):
        if not 1 <= indices <= count:
            raise ValueError(
                f"out_indices={indices} asks for the last {indices} of {count} taps; give 1 to "
                f"{count}, or a tuple such as ({indices},) for a single position"
            )
        return tuple(range(count - indices, count))
    if not isinstance(indices, Iterable):
        check_whole("out_indices", indices)
    positions = tuple(indices)
    if not positions:
        raise ValueError(f"out_indices is empty; give positions from 0 to {count - 1}")
    for index in positions:
        if not isinstance(index, int) or not -count <= index < count:
            raise ValueError(
                f"out_indices={positions}: there is no tap {index}; give positions from 0 to "
                f"{count - 1}, or -1 for the last"
            )
    taken = tuple(index % count for index in positions)
    if any(later <= earlier for earlier, later in pairwise(taken)):
        raise ValueError(f"out_indices={positions} must ascend without repeats, as the taps come")
    return taken
