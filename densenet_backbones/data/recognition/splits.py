"""Names of splits: those that folders and files have, and those that stand for each other."""

import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import PurePosixPath

WHOLE = "all"
"""Name of the only split of data that has none."""
OTHERS = "others"
"""Name of the images that are in no split, where others are."""
_SYNONYMS = (
    ("train", "training", "trainval"),
    ("val", "valid", "validation", "dev"),
    ("test", "testing"),
)
_SPELLINGS = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}
"""Words that mean another beside it; "trainval" and "dev" may be parts of their own."""
_WORD = re.compile(rf"({'|'.join(word for words in _SYNONYMS for word in words)})(\d{{4}})?", re.I)


def find_split_word(name: str) -> str | None:
    """Find the split that a file belongs to, by the names of its folders and its own.

    The innermost name that has such a word in it decides ("train", "Valid", "test2017"); its own
    name does before its folders. None where no name has one, or one has two.
    """
    path = PurePosixPath(name)
    for part in (path.stem, *reversed(path.parts[:-1])):
        words = [word for word in re.split(r"[\W_]+", part) if _WORD.fullmatch(word)]
        if len(set(words)) == 1:
            return words[0]
        if words:
            return None
    return None


def match_split(split: str, known: Collection[str]) -> str | None:
    """Return the known split that a name means: itself, with a year, or a synonym of it."""
    if split in known:
        return split
    own = next((words for words in _SYNONYMS if split.lower() in words), (split.lower(),))
    for word in (split.lower(), *own):
        # The newest year first.
        for name in sorted(known, reverse=True):
            if re.fullmatch(rf"{re.escape(word)}(\d{{4}})?", name, re.I):
                return name
    return None


def unify_splits(names: Iterable[str]) -> dict[str, str]:
    """Return for each split the name that it goes by: of several spellings of one, the first.

    "Training" goes by "train" where both are there, and alone by its own name.
    """
    first: dict[str, str] = {}
    names = order_splits(set(names))
    return {name: first.setdefault(_spell(name), name) for name in names}


def _spell(name: str) -> str:
    word = _WORD.fullmatch(name)
    if not word:
        return name.lower()
    return _SPELLINGS.get(word[1].lower(), word[1].lower()) + (word[2] or "")


def order_splits(names: Iterable[str]) -> Sequence[str]:
    """Return splits in the order train, val, test, others."""
    words = [word for group in _SYNONYMS for word in group]

    def rank(name: str) -> tuple[int, str]:
        word = _WORD.fullmatch(name)
        return (words.index(word[1].lower()) if word else len(words), name)

    return sorted(names, key=rank)
