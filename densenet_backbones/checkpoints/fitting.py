"""Whether weights belong to a network: everything that is wrong, in one error."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from densenet_backbones.checkpoints.errors import CheckpointError
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
    """Renames weights to our names and checks that they belong to a network.

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
            lists them all, and says what the weights look like.
    """
    ours = to_ours(weights, prefix)
    fitting = {key: value for key, value in ours.items() if not _is_surplus_counter(key, known)}
    problems = _problems(fitting, known, needed)
    if problems:
        raise CheckpointError(
            f"the weights do not fit the network; {'; '.join(problems)}; the file "
            f"looks like {_look(ours)}; choose the network it belongs to, or another file"
        )
    return fitting


def _problems(
    fitting: Mapping[str, Tensor], known: Mapping[str, Tensor], needed: Iterable[str]
) -> list[str]:
    """What is wrong, one part of a sentence for each kind."""
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
        if key in known and _shape(key, fitting[key]) != _shape(key, known[key])
    ]
    problems = (
        _listed(missing, "missing"),
        _listed(unexpected, "unexpected"),
        _listed(shapes, "of another shape, the file's for the network's"),
        _about_norms(missing, unexpected, known),
    )
    return list(filter(None, problems))


def _is_surplus_counter(key: str, known: Mapping[str, Tensor]) -> bool:
    norm = key.removesuffix(_COUNTER)
    return norm != key and key not in known and f"{norm}.weight" in known


def _shape(key: str, value: Tensor) -> tuple[int, ...]:
    shape = tuple(value.shape)
    return (shape[0], *shape[2:]) if key == "conv0.weight" and len(shape) == 4 else shape


def _listed(items: list[str], what: str) -> str:
    if not items:
        return ""
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    entries = "entry is" if len(items) == 1 else "entries are"
    return f"{len(items)} {entries} {what}: {', '.join(items[:_SHOWN])}{more}"


def _about_norms(missing: list[str], unexpected: list[str], known: Mapping[str, Tensor]) -> str:
    """The one cause that lists of names hide: batch norm in the one, group norm in the other."""
    if any(key.endswith(_STATISTICS) and f"{_norm(key)}.weight" in known for key in unexpected):
        return (
            "the network's norms keep no running statistics (group norm) and the file's do "
            "(batch norm)"
        )
    if missing and all(key.endswith(_STATISTICS) for key in missing):
        return "the file's norms have no running statistics, as a group norm's"
    return ""


def _norm(key: str) -> str:
    return key.rpartition(".")[0]


def _look(ours: Mapping[str, Tensor]) -> str:
    try:
        found = recognize(ours)
    except CheckpointError as error:
        return f"no known DenseNet ({error})"
    end = f", complete up to {found.complete_to}" if found.complete_to else ""
    return found.describe() + end
