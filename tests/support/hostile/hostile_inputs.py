"""Small files that ask for hours or terabytes, each read in a process of bounded memory and time.

Run as a program, this prints a JSON object: case to what became of it. Modules are loaded once;
each case is read in a fork, which may take `MEGABYTES` more and `SECONDS` of the processor.
"""

import base64
import io
import json
import os
import resource
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import fuzzed_readers
import numpy as np
import torch
from fuzzed_readers import READERS

from densenet_backbones.data.images import read_image
from densenet_backbones.messages import nearest

MEGABYTES, SECONDS = 700, 12
Case = Callable[[Path], object]


def read(reader: str, data: bytes) -> Case:
    return lambda folder: READERS[reader].read(data, folder)


def coco(**changes: object) -> Case:
    """The first seed of COCO files with its only annotation, or other entries, changed."""

    def run(folder: Path) -> object:
        content = json.loads(READERS["coco"].seeds()[0])
        for key, value in changes.items():
            if key in content:
                content[key] = value
            else:
                content["annotations"][0][key] = value
        return READERS["coco"].read(json.dumps(content).encode(), folder)

    return run


def coco_with_classes(count: int) -> Case:
    """A file of many classes that are asked for in another order."""

    def run(folder: Path) -> object:
        try:
            coco(categories=categories(count))(folder)
        except fuzzed_readers.DataError:
            names = [f"c{n}" for n in reversed(range(count))]
            return fuzzed_readers.read_coco(folder, "train", classes=names)
        raise AssertionError("masks have labels of 8 bits")

    return run


def zigzag(points: int) -> Case:
    """A polygon that crosses from side to side, far out."""
    image = {"id": 7, "file_name": "a.png", "width": 1000, "height": 800}
    polygon = [v for n in range(points) for v in (-9000 if n % 2 else 9000, n % 800)]
    return coco(images=[image], segmentation=[polygon])


def categories(count: int, **more: object) -> list[dict[str, object]]:
    return [{"id": n, "name": f"c{n}", **more} for n in range(count)]


def model(**changes: object) -> Case:
    description = {**fuzzed_readers.TINY_DETECTOR, **changes}
    return read("models", json.dumps(description).encode())


def blocks(*layers: int) -> Case:
    args = fuzzed_readers.TINY_DETECTOR["args"]
    backbone = {**args["backbone_kwargs"], "block_config": layers}
    return model(args={**args, "backbone_kwargs": backbone})


def saved(content: object, compress: int = zipfile.ZIP_STORED) -> Case:
    """What torch saves, perhaps compressed afterwards."""

    def run(folder: Path) -> object:
        torch.save(content, buffer := io.BytesIO())
        if compress:
            whole = zipfile.ZipFile(buffer)
            with zipfile.ZipFile(buffer := io.BytesIO(), "w", compress) as packed:
                for record in whole.infolist():
                    packed.writestr(record.filename, whole.read(record))
        return READERS["weights"].read(b"z" + buffer.getvalue(), folder)

    return run


def pickled(text: bytes) -> Case:
    return read("weights", b"p\x80\x02" + text + b".")


def expanded() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.zeros(1).expand(10**11)}


def sparse() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.sparse_coo_tensor([[0], [0]], [1.0], (10**6, 10**5))}


def laughs(depth: int = 60) -> list[object]:
    """A list of two that holds one list of two that ..., twice."""
    inner: list[object] = [0]
    for _ in range(depth):
        inner = [inner, inner]
    return inner


def mat(kind: int, dims: tuple[int, ...]) -> bytes:
    """A MATLAB file whose GTcls claims to have many elements."""

    def element(code: int, data: bytes) -> bytes:
        return np.array([code, len(data)], "<u4").tobytes() + data + bytes(-len(data) % 8)

    body = element(6, np.array([kind, 0], "<u4").tobytes())
    body += element(5, np.array(dims, "<i4").tobytes()) + element(1, b"GTcls")
    return b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + element(14, body)


def image(content: Callable[[], bytes]) -> Case:
    """An image file of that content, whatever its name says."""

    def run(folder: Path) -> object:
        path = folder / "a.jpg"
        path.write_bytes(content())
        return read_image(path)

    return run


def png(width: int, height: int, rows: int) -> Callable[[], bytes]:
    """A black RGB image whose header promises a size, and which has so many of its rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return len(data).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")

    def make() -> bytes:
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(bytes(3 * width + 1)) for _ in range(rows))
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + b"\x08\x02\0\0\0"
        pixels = chunk(b"IDAT", packed + packer.flush())
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")

    return make


FAR_FRAME = "R0lGODdhBAADAIEAAMQAAACAAAAAgAAAAAAsAAMA/wQAAwAACAsAAQQQIJDgwIJGVQEBfjs="
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n%%EOF\n"
SAFE = {"a.weight": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}
REFUSED: dict[str, Case] = {
    "polygon of 5 kB": zigzag(900),
    "polygon of 22 kB": zigzag(4000),
    "polygon of 1 MB": zigzag(100_000),
    "many polygons": coco(segmentation=[[0, 0, 0, 5, 7, 5, 7, 0]] * 30_000),
    "polygon in a huge image": coco(
        images=[{"id": 7, "file_name": "a.png", "width": 10**6, "height": 10**6}]
    ),
    "runs of a huge image": coco(
        images=[{"id": 7, "file_name": "a.png", "width": 10**6, "height": 10**6}],
        segmentation={"size": [10**6, 10**6], "counts": [10**12]},
    ),
    "runs beyond 64 bits": coco(segmentation={"size": [6, 8], "counts": [10**30, 48 - 10**30]}),
    "runs without end": coco(segmentation={"size": [6, 8], "counts": "P" * 1_000_000}),
    "100,000 categories": coco(categories=categories(100_000)),
    "category name of 1 MB": coco(categories=categories(1, name="x" * 10**6)),
    "file name of 1 MB": coco(images=[{"id": 7, "file_name": "a/" * 500_000}]),
    "JSON nested": read("coco", b"[" * 1_000_000),
    "JSON nested objects": read("coco", b'{"images":' * 100_000),
    "whole number of 100,000 digits": coco(area=0, bbox=[0, 0, int("9" * 4000), 1]),
    "box of NaN": coco(bbox=[float("nan"), 0, 1, 1]),
    "many keypoints": coco(keypoints=[1.0] * 200_000),
    # A frame far outside of the 4x3 pixels that the header says, in colors no class has.
    "mask of 50 Mpixel in 53 bytes": read("masks", base64.b64decode(FAR_FRAME)),
    "XML nested": read("voc", b"<annotation>" + b"<a>" * 100_000),
    "XML of 9 MB": read("voc", b"<annotation>" + b"<a/>" * 2_300_000 + b"</annotation>"),
    "XML of 1 MB": read("voc", b"<annotation>" + b"<object/>" * 100_000 + b"</annotation>"),
    "XML entities": read(
        "voc", b'<!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>'
    ),
    "XML attributes": read(
        "voc", b"<annotation " + b" ".join(b'a%d=""' % n for n in range(100_000)) + b"/>"
    ),
    "CVAT of a million boxes in an image": read(
        "cvat", b'<annotations><image name="a.png">' + b"<box/>" * 1_000_000 + b"</image>"
    ),
    "CVAT mask of terabytes": read(
        "cvat",
        b'<annotations><image name="a.png" width="1000000" height="1000000"><mask label="a" '
        b'left="0" top="0" width="1000000" height="1000000" rle="1000000000000"/></image>',
    ),
    "labelme nested": read("labelme", b'{"shapes": [' + b"[" * 1_000_000),
    "labelme of 70 MB": read("labelme", b'{"shapes": [], "imageData": "' + b"A" * (70 << 20)),
    "VIA nested": read("via", b'{"a": {"filename": "a.png", "regions": [' + b"[" * 1_000_000),
    "VIA of a million regions": read(
        "via", b'{"a": {"filename": "a.png", "regions": [' + b"{}," * 1_000_000 + b"{}]}}"
    ),
    "CSV of a cell of 20 MB": read("csv", b"a.png,1,1,4,5," + b"x" * (20 << 20)),
    "YOLO of 9 MB": read("yolo", b"0 0.5 0.5 0.1 0.1\n" * 500_000),
    "YOLO keypoints of 10^9": read(
        "data.yaml", b"train: .\nnames: [a]\nkpt_shape: [1000000000, 3]"
    ),
    "archive of zeros": lambda folder: archive_of_zeros(folder),
    "line of 20 MB in a list": read("lists", b"x" * (20 << 20)),
    "list of 70 MB": read("lists", b"x\n" * (35 << 20)),
    "YAML of 20 kB of brackets": read("classes", b"[" * 20_000),
    "YAML of braces": read("classes", b"{" * 20_000),
    "YAML of keys": read("classes", b"? " * 20_000),
    "YAML of a number": read("classes", b"classes: [{name: a, id: 0x" + b"f" * 200_000 + b"}]"),
    "YAML of sixties": read("classes", b"classes: [{name: a, id: 1" + b":59" * 80_000 + b"}]"),
    "YAML of 1 MB": read("classes", b"classes: [" + b"a, " * 350_000 + b"]"),
    "YAML of many names": read(
        "classes", b"classes: [" + b", ".join(b"%x" % n for n in range(30_000)) + b"]"
    ),
    "config of laughs": read(
        "configs",
        b"a0: &a0 [x, x]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d]\n" % (n, n, n - 1, n - 1) for n in range(1, 60)),
    ),
    "config in itself": read("configs", b"a: &a [*a]"),
    "config of brackets": read("configs", b"[" * 100_000),
    "label map of a long number": read("labels", b"a:" + b"9" * 100_000 + b",1,1::"),
    "MATLAB cells": read("matlab", mat(1, (10**5, 10**5))),
    "MATLAB numbers": read("matlab", mat(6, (10**5, 10**5))),
    "MATLAB structs": read("matlab", mat(2, (10**5, 10**5))),
    "MATLAB structs that still fit": read("matlab", mat(2, (10**4, 10**4))),
    "MATLAB structs of negative sizes": read("matlab", mat(2, (-1, -(10**8)))),
    "expanded tensor": saved(expanded()),
    "sparse tensor": saved(sparse()),
    "tensor on meta": saved({"a.weight": torch.zeros(10**9, device="meta")}),
    "compressed storage": saved({"a.weight": torch.zeros(10_000_000)}, zipfile.ZIP_DEFLATED),
    "pickled bytearray": pickled(b"cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R"),
    "pickled tensor": pickled(b"ctorch\nFloatTensor\nJ\x00\x00\x00\x7f\x85R"),
    "pickled laughs": saved({"a": laughs()}),
    "description of laughs": lambda folder: read_description(laughs(), folder),
    "weights of 25,000 names": saved(dict.fromkeys(map(str, range(25_000)), torch.zeros(1))),
    "safetensors of terabytes": read(
        "weights", b"s" + len(json.dumps(SAFE)).to_bytes(8, "little") + json.dumps(SAFE).encode()
    ),
    "safetensors header of 90 MB": read(
        "weights", b"s" + (90 << 20).to_bytes(8, "little") + b"{" + b" " * (90 << 20)
    ),
    "model of 200,000 classes": model(categories={"names": ["a"] * 200_000, "ids": [1] * 200_000}),
    "model of 30,000 classes": model(
        categories={"names": list(map(str, range(30_000))), "ids": list(range(30_000))}
    ),
    "model of a billion layers": blocks(10**9, 1, 1, 1),
    "model of many layers": blocks(400, 400, 200, 200),
    "model of terabytes": model(
        args={**fuzzed_readers.TINY_DETECTOR["args"], "adapter_channels": [10**6] * 4}
    ),
    "model for images of 10^9": model(
        args={**fuzzed_readers.TINY_DETECTOR["args"], "image_size": 10**9}
    ),
    "model nested": read("models", b"[" * 1_000_000),
    "image of 900 Mpixel": image(png(30_000, 30_000, 1)),
    "image of 10^18 pixels": image(png(10**9, 10**9, 0)),
    "image of 80 Mpixel without pixels": image(png(10_000, 8_000, 0)),
    "program that is called an image": image(lambda: EPS),
}
"""Cases that end in one of the reader's errors."""

READ: dict[str, Case] = {
    "image of 80 Mpixel in 230 kB": image(png(10_000, 8_000, 8_000)),
    "boxes of 1e308": coco(bbox=[1e308, 1e308, 1e308, 1e308]),
    "layers without end": saved(
        {f"denseblock1.denselayer{n}.conv1.weight": torch.ones(1) for n in range(1, 2200)}
    ),
    "blocks without end": saved(
        {f"denseblock{n}.denselayer1.conv1.weight": torch.ones(1) for n in range(1, 2200)}
    ),
    "name near 200,000 others": lambda folder: nearest("a" * 90, map(str, range(200_000))),
    "20,000 categories in another order": coco_with_classes(20_000),
    "name of 1 MB near others": lambda folder: nearest("ab" * 500_000, ["ab" * 500_000 + "c"]),
    "2,000 small objects": coco(
        annotations=[
            {"id": n, "image_id": 7, "category_id": 2, "bbox": [1, 1, 2, 2], "keypoints": [0] * 6,
             "segmentation": [[1, 1, 3, 1, 3, 3]]}
            for n in range(2_000)
        ]
    ),
}  # fmt: skip
"""Cases that are read."""


def archive_of_zeros(folder: Path) -> object:
    """A gigabyte in a few megabytes."""
    with (
        zipfile.ZipFile(folder / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("zeros", "w", force_zip64=True) as file,
    ):
        for _ in range(65):
            file.write(bytes(2**24))
    return fuzzed_readers.read_archive((folder / "a.zip").read_bytes(), folder)


def read_description(value: object, folder: Path) -> object:
    """A checkpoint whose description of the model is that value."""
    path = folder / "a.ckpt"
    torch.save({fuzzed_readers.DetectorSpec.key: {"format": 2, "name": value}}, path)
    return fuzzed_readers.read_model_file(path, (fuzzed_readers.DetectorSpec,))


def run_in_fork(case: Case) -> str:
    """Return what became of a case: "read", an error in one line, or how the process ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (MEGABYTES << 20),) * 2)
        since = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(since.ru_utime + since.ru_stime) + SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit))
        try:
            with tempfile.TemporaryDirectory() as folder:
                case(Path(folder))
            text = "read"
        except fuzzed_readers.DataError as error:
            text = f"refused: {error}"
        except fuzzed_readers.CheckpointError as error:
            text = f"refused: {error}"
        except ValueError as error:
            text = f"refused: {error}" if type(error) is ValueError else f"raised {error!r}"
        except BaseException as error:
            text = f"raised {error!r}"
        os.write(writing, text[:3000].encode("utf-8", "replace"))
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    return text if not status else f"ended by signal {os.WTERMSIG(status)}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    fuzzed_readers.make_config_parser()
    wanted = sys.argv[1:]
    cases = {
        name: case for name, case in {**REFUSED, **READ}.items() if not wanted or name in wanted
    }
    results = {name: run_in_fork(case) for name, case in cases.items()}
    print(json.dumps(results, indent=1))
