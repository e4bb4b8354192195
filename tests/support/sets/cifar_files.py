"""CIFAR's published files, small: pickles as Python 2 wrote them, and binary rows."""

import pickle
from pathlib import Path

import numpy as np

NAMES = {"10": ["airplane", "bird", "cat"], "100": ["apple", "bee", "cup"]}


def pickle_as_python_2(content: dict) -> bytes:
    """Pickle texts as byte strings and arrays by numpy's name of old, protocol 2."""

    def text(value: str) -> bytes:
        return b"U" + bytes([len(value)]) + value.encode()

    def write(value) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(write(k) + write(v) for k, v in value.items()) + b"u"
        if isinstance(value, list):
            return b"](" + b"".join(map(write, value)) + b"e"
        if isinstance(value, str):
            return text(value)
        if isinstance(value, np.ndarray):
            data = value.tobytes()
            kind = b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|")
            kind += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
            shape = b"".join(write(int(n)) for n in value.shape) + b"\x86"
            begun = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
            begun += text("b") + b"\x87R"
            size = len(data).to_bytes(4, "little")
            return begun + b"(K\x01" + shape + kind + b"\x89T" + size + data + b"tb"
        return pickle.dumps(value, 2)[2:-1]

    return b"\x80\x02" + write(content) + b"."


def make_rows(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Return (count, 3072) pixels and labels of three classes."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 3072), np.uint8), [n % 3 for n in range(count)]


def write_cifar(root: Path, kind: str, form: str, count: int = 6) -> dict[str, tuple]:
    """Write a data set; returns the pixels and labels of "train" and "test".

    Args:
        root: Folder of the files.
        kind: "10" or "100".
        form: "pickle" or "binary".
        count: Images of each file.
    """
    root.mkdir(parents=True)
    many = [f"data_batch_{n}" for n in range(1, 6)]
    files = {"train": many, "test": ["test_batch"]} if kind == "10" else {"train": ["train"]}
    files.setdefault("test", ["test"])
    written = {}
    for split, names in files.items():
        rows = [make_rows(count, 10 * n + (split == "test")) for n in range(len(names))]
        for name, (pixels, labels) in zip(names, rows, strict=True):
            if form == "pickle":
                key = "labels" if kind == "10" else "fine_labels"
                content = {"data": pixels, key: labels, "filenames": ["a.png"] * count}
                (root / name).write_bytes(pickle_as_python_2(content))
            else:
                heads = np.array([[0] * (kind == "100") + [n] for n in labels], np.uint8)
                (root / f"{name}.bin").write_bytes(np.hstack((heads, pixels)).tobytes())
        written[split] = (
            np.concatenate([pixels for pixels, _ in rows]),
            [n for _, labels in rows for n in labels],
        )
    if form == "pickle":
        key = "label_names" if kind == "10" else "fine_label_names"
        meta = "batches.meta" if kind == "10" else "meta"
        (root / meta).write_bytes(pickle_as_python_2({key: NAMES[kind]}))
    else:
        meta = "batches.meta.txt" if kind == "10" else "fine_label_names.txt"
        (root / meta).write_text("\n".join(NAMES[kind]) + "\n")
    return written
