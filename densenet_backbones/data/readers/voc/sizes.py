"""Settles the sizes of images where VOC's files say others."""

from collections.abc import Sequence
from pathlib import Path

from densenet_backbones.data.faults import Problem
from densenet_backbones.data.files import track_progress
from densenet_backbones.data.images import ImageSizeError, read_image_size
from densenet_backbones.data.readers.voc.xml_file import VocAnnotation

_FEW = 0.1  # share of files that are odd by chance; tools that resize images resize all


def settle_sizes(
    pairs: Sequence[tuple[VocAnnotation, Path]],
) -> tuple[list[tuple[int, int]], list[Problem]]:
    """Return the (W, H) that each image's record has, and what was passed over.

    An image's own size is taken where its file has width and height swapped, and where few files
    are odd. Where many are, the images were resized or turned after they were annotated, and the
    boxes lie elsewhere: then records keep the size of the file, as those of other formats do, and
    who checks the images refuses it.

    Args:
        pairs: Content of each annotation file, and its image.
    """
    sizes: list[tuple[int, int]] = []
    problems: dict[int, Problem] = {}
    odd: dict[int, tuple[int, int]] = {}
    for n, (annotation, image) in enumerate(track_progress(pairs, "Reading sizes")):
        promised = annotation.size
        try:
            size = read_image_size(image, promised)
        except ImageSizeError as error:
            size = read_image_size(image)
            action = "the image's own size used, the boxes taken as they are"
            problems[n] = Problem(str(annotation.path), "size", str(error), action)
            is_swapped = promised == size[::-1] and size == read_image_size(image, as_stored=True)
            if promised is not None and not is_swapped:
                odd[n] = promised
        sizes.append(size)
    if len(odd) > max(1, _FEW * len(pairs)):
        for n, promised in odd.items():
            sizes[n] = promised
            del problems[n]
    return sizes, list(problems.values())
