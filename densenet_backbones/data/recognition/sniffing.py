"""Tells formats of annotation files apart by the first and last bytes of some of them."""

import codecs
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from densenet_backbones.data.files import spread
from densenet_backbones.data.recognition.tree import Tree
from densenet_backbones.messages import pluralize
from densenet_backbones.untrusted.limits import MAX_SNIFFED_FILES, SNIFFED_BYTES

_COCO_LISTS = [re.compile(rf'"{key}"\s*:\s*\['.encode()) for key in ("images", "annotations")]
_CATEGORIES = re.compile(rb'"categories"\s*:\s*\[')
_SEGMENTS = re.compile(rb'"segments_info"\s*:')
_SHAPES = re.compile(rb'"shapes"\s*:\s*\[')
_REGIONS = re.compile(rb'"(regions|_via_img_metadata|vid_list)"\s*:\s*[\[{]')
# Words of JSON files of other tools -> what they are, and how they become something that is read.
_OTHER_JSON = {
    (
        b'"original_width"',
        b'"result"',
    ): "tasks of Label Studio; export them as COCO or YOLO",
    (b'"classTitle"',): "Supervisely's annotations; export them as COCO or YOLO",
    (
        b'"coordinates"',
        b'"annotations"',
        b'"label"',
    ): "CreateML's list; convert it to COCO",
    (b'"FeatureCollection"', b'"coordinates"'): "GeoJSON; convert it to COCO, in pixels",
    (b'"box2d"', b'"labels"'): "annotations of BDD100K or Scalabel; convert them to COCO",
}
_ELEMENT = re.compile(rb"<\s*([A-Za-z_][\w.-]*)")
_YOLO_LINE = re.compile(r"\d+(\.0*)?(\s+[-+]?[\d.]+([eE][-+]?\d+)?){4,}\s*")


def read_ends(path: Path) -> bytes:
    """Read the first and the last bytes of a file; nothing where it cannot be read.

    UTF-16 becomes UTF-8.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(SNIFFED_BYTES)
            size = file.seek(0, 2)
            file.seek(max(len(head), size - SNIFFED_BYTES))
            content = head + file.read(SNIFFED_BYTES)
    except OSError:
        return b""
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return content.decode("utf-16", "replace").encode()
    return content


def sniff_json(path: Path) -> str:
    """Return "coco", "panoptic", "labelme" or "via", or else a clause that says what it is."""
    text = read_ends(path)
    if _SHAPES.search(text):
        return "labelme"
    for words, clause in _OTHER_JSON.items():
        if all(word in text for word in words):
            return clause
    lists = sum(bool(pattern.search(text)) for pattern in (*_COCO_LISTS, _CATEGORIES))
    if lists >= 2 or (lists and len(text) > SNIFFED_BYTES):
        return "panoptic" if _SEGMENTS.search(text) else "coco"
    if _REGIONS.search(text):
        return "via"
    start = text.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]
    if start == b"[":
        return "a list, as files of results are"
    if start != b"{":
        return "no JSON object"
    return "without the lists images, annotations and categories"


def sniff_xml(path: Path) -> str:
    """Return "voc" or "cvat", or else a clause that says what it is."""
    text = read_ends(path)
    body = re.sub(rb"<\?.*?\?>|<!--.*?-->", b"", text, flags=re.S)
    element = _ELEMENT.search(body)
    name = element[1].decode() if element else ""
    if name == "annotation":
        return "voc"
    if name == "annotations" and b"<image" in text:
        return "cvat"
    if name == "annotations" and b"<track" in text:
        return "CVAT's tracks of a video; export the task as CVAT for images, with its frames"
    return f"<{name[:40]}> outermost" if name else "no XML"


def describe_table(path: Path) -> str:
    """Return a clause that says what a CSV file is, none of whose columns make boxes."""
    head = read_ends(path).decode("utf-8-sig", "replace").partition("\n")[0].strip()
    if "EncodedPixels" in head:
        return (
            "run lengths of masks (EncodedPixels); draw them as pictures, or convert them to COCO"
        )
    return (
        f"a table with the columns {head[:100]!r}; it needs filename, class, xmin, ymin, xmax, ymax"
    )


def is_yolo_labels(path: Path) -> bool | None:
    """Return True if all lines near the start of a text file are numbers as YOLO has them.

    None where the file is empty, which says that there are no objects.
    """
    lines = read_ends(path)[:4096].decode("utf-8-sig", "replace").splitlines()
    lines = [line for line in lines if line.strip()]
    if not lines:
        return None
    # The last line may have been cut.
    return all(_YOLO_LINE.fullmatch(line) for line in lines[: max(1, len(lines) - 1)])


def choose_some(names: Sequence[str]) -> Sequence[str]:
    """Return a number of files that can be looked at in a moment, spread evenly."""
    return spread(names, MAX_SNIFFED_FILES)


def count_in_file(path: Path, word: bytes) -> int:
    """Count a word in a file, part by part."""
    count, rest = 0, b""
    try:
        with open(path, "rb") as file:
            while part := file.read(2**20):
                text = rest + part
                count += text.count(word)
                rest = text[-(len(word) - 1) :]
    except OSError:
        return 0
    return count


def describe_files(tree: Tree, *, most: int = 6) -> str:
    """Describe what lies in a folder: ``412 .jpg, 3 .json``, the most frequent endings first."""
    counts: dict[str, int] = {}
    for name in tree.files:
        suffix = Path(name).suffix.lower()[:20] or "without ending"
        counts[suffix] = counts.get(suffix, 0) + 1
    ordered = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = ", ".join(f"{count} {suffix}" for suffix, count in ordered[:most])
    more = sum(count for _, count in ordered[most:])
    return (shown + (f" and {pluralize(more, 'other')}" if more else "")) or "no files"


def summarize_kinds(kinds: Iterable[tuple[str, str]]) -> str:
    """Describe the files of one ending that are of no known format, grouped by the reason."""
    groups: dict[str, list[str]] = {}
    for name, kind in kinds:
        groups.setdefault(kind, []).append(name)
    return "; ".join(
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {kind}"
        for kind, names in list(groups.items())[:4]
    )
