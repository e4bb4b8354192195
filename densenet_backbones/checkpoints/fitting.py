"""Check that weights belong to a network; one error lists everything that is wrong."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
from densenet_backbones.checkpoints.integrity import refuse_unusable
from densenet_backbones.checkpoints.keys import CLASSIFIER, to_ours
from densenet_backbones.checkpoints.recognition import recognize

__all__ = ["fit_to"]

_COUNTER = ".num_batches_tracked"
_STATISTICS = (".running_mean", ".running_var")
_SHOWN = 3


def fit_to(
    weights: Mapping[str, Tensor],
    known: Mapping[str, Tensor],
    needed: Iterable[str],
    prefix: str | None = None,
) -> dict[str, Tensor]:
    """Rename weights to our names and check that they belong to a network.

    A loader that is not strict, such as timm's for feature nets, leaves random what it cannot
    match, without a word; this check speaks. Left to the loader are the classifier and the number
    of image channels of ``conv0.weight``, which timm drops or adapts. Counters of batches may be
    missing (published files are older than they are) or too many (frozen norms have none).

    Args:
        weights: Weights under any name that `to_ours` reads.
        known: State dict of the whole network under our names; the meta device does.
        needed: Names that must be there; weights of the rest of ``known`` may be.
        prefix: As in `to_ours`.

    Returns:
        The weights under our names, without counters that the network does not have.

    Raises:
        CheckpointError: As `to_ours`; or entries are missing, unexpected or of another shape. It
            lists them all, and says what the weights look like. Or values are not finite, or no
            floating-point numbers.
    """
    ours = to_ours(weights, prefix)
    fitting = {key: value for key, value in ours.items() if not _is_surplus_counter(key, known)}
    problems = _list_problems(fitting, known, needed)
    if problems:
        raise CheckpointError(
            f"the weights do not fit the network; {'; '.join(problems)}; the file "
            f"looks like {_describe_weights(ours)}; choose the network it belongs to, or another "
            "file"
        )
    refuse_unusable(fitting, "the weights")
    return fitting


def _list_problems(
    fitting: Mapping[str, Tensor], known: Mapping[str, Tensor], needed: Iterable[str]
) -> list[str]:
    """List what is wrong, one part of a sentence for each kind."""
    # The body alone: a classifier's number of classes says nothing about the network.
    body = [key for key in fitting if not key.startswith(CLASSIFIER)]
    missing = [
        key
        for key in needed
        if key not in fitting and not key.startswith(CLASSIFIER) and not key.endswith(_COUNTER)
    ]
    unexpected = [key for key in body if key not in known]
    shapes = [
        f"{key} {tuple(fitting[key].shape)} for {tuple(known[key].shape)}"
        for key in body
        if key in known and _read_shape(key, fitting[key]) != _read_shape(key, known[key])
    ]
    problems = (
        _describe_entries(missing, "missing"),
        _describe_entries(unexpected, "unexpected"),
        _describe_entries(shapes, "of another shape, the file's for the network's"),
        _explain_norms(missing, unexpected, known),
    )
    return list(filter(None, problems))


def _is_surplus_counter(key: str, known: Mapping[str, Tensor]) -> bool:
    norm = key.removesuffix(_COUNTER)
    return norm != key and key not in known and f"{norm}.weight" in known


def _read_shape(key: str, value: Tensor) -> tuple[int, ...]:
    shape = tuple(value.shape)
    return (shape[0], *shape[2:]) if key == "conv0.weight" and len(shape) == 4 else shape


def _describe_entries(items: list[str], what: str) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    entries = "entry is" if len(items) == 1 else "entries are"
    return f"{len(items)} {entries} {what}: {', '.join(items[:_SHOWN])}{more}"


def _explain_norms(missing: list[str], unexpected: list[str], known: Mapping[str, Tensor]) -> str:
    """Name the cause that lists of names hide: batch norm in the one, group norm in the other."""
    if any(
        key.endswith(_STATISTICS) and f"{_name_norm(key)}.weight" in known for key in unexpected
    ):
        return (
            "the network's norms keep no running statistics (group norm) and the file's do "
            "(batch norm)"
        )
    if missing and all(key.endswith(_STATISTICS) for key in missing):
        return "the file's norms have no running statistics, as a group norm's"
    return ""


def _name_norm(key: str) -> str:
    return key.rpartition(".")[0]


def _describe_weights(ours: Mapping[str, Tensor]) -> str:
    try:
        network = recognize(ours)
    except CheckpointError as error:
        return f"no known DenseNet ({error})"
    end = f", complete up to {network.complete_to}" if network.complete_to else ""
    return network.describe() + end
