"""Print the one command that follows a marker in the README: ``readme_command.py README.md test``.

The marker is the line ``<!-- command: test -->``; a fenced block with one line follows it.
"""

import re
import sys
from pathlib import Path


def command(text: str, name: str) -> str:
    """The line of the fenced block under a marker.

    Raises:
        ValueError: There is not exactly one such marker, or its block has not exactly one line.
    """
    marker = f"<!-- command: {name} -->"
    pattern = rf"^{re.escape(marker)}\n+```\w*\n(.*?)^```$"
    blocks = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    if text.count(marker) != 1 or len(blocks) != 1:
        raise ValueError(f"the README must have one {marker} with a fenced block under it")
    lines = [line for line in blocks[0].splitlines() if line.strip()]
    if len(lines) != 1:
        raise ValueError(f"the block under {marker} must have one line, not {len(lines)}")
    return str(lines[0])


if __name__ == "__main__":
    print(command(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[2]))
