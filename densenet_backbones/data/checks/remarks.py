"""Says in lines what a person should know of the data before training on it or evaluating it."""

from collections.abc import Iterator

from densenet_backbones.data.checks.contents import (
    AnySet,
    remark_on_corners,
    remark_on_mixed_values,
    remark_on_similar_classes,
    remark_on_unmeasurable,
    remark_on_untaught_classes,
)
from densenet_backbones.data.checks.image_files import (
    list_image_files,
    remark_on_copies,
    remark_on_dark,
    remark_on_repeated,
    remark_on_shared,
)


def remark_on_data(train: AnySet | None, val: AnySet) -> Iterator[str]:
    """Yield a line for each thing in the data that teaches nothing, or something that is wrong.

    Args:
        train: Training set; None where there is none.
        val: Evaluated set; the training set itself where a model is to overfit.
    """
    yield from remark_on_similar_classes(train or val)
    if train is not None:
        yield from remark_on_untaught_classes(train)
    if val is not train:
        yield from remark_on_unmeasurable(val)
    parts = (val,) if train is None or train is val else (train, val)
    files = [list_image_files(part) for part in parts]
    if len(parts) > 1:
        yield from remark_on_shared(val.name, *files)
    for part, listed in zip(parts, files, strict=True):
        yield from remark_on_repeated(part.name, listed)
        yield from remark_on_copies(part.name, listed)
        yield from remark_on_mixed_values(part)
        yield from remark_on_corners(part)
        yield from remark_on_dark(part)
