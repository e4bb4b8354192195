"""Faults in data: those that stop the reading, and those that do not."""

from dataclasses import dataclass
from pathlib import Path

from densenet_backbones.messages import describe_missing


class DataError(ValueError):
    """Fault in the user's data: the message names the file, the item and the fix.

    Further arguments are lines of a list that the message ends with.
    """

    def __str__(self) -> str:
        return "\n  ".join(map(str, self.args))


def check_is_there(path: str | Path) -> None:
    """Refuse the path of a data set where nothing is.

    Raises:
        DataError: There is no file or folder.
    """
    if not Path(path).exists():
        raise DataError(describe_missing(Path(path), "file or folder"))


@dataclass(frozen=True)
class Problem:
    """Fault in a data set that did not stop its reading.

    Attributes:
        file: The file that has it.
        item: The entry of the file.
        what: Clause that says what is wrong.
        action: Clause that says what was done about it.
    """

    file: str
    item: str
    what: str
    action: str

    def __str__(self) -> str:
        return f"{self.file}: {self.item}: {self.what}; {self.action}"
