"""Reads the project's Markdown pages: their fenced blocks, commands, links and headings."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from locations import PROJECT

ROOMS = ("densenet_backbones", "heads", "configs", "tests", "tools")
MEASURED = (
    *(f"configs/{task}/README.md" for task in ("det", "seg", "cls")),
    "densenet_backbones/benchmark/README.md",
)
BESIDE = (*MEASURED, "tools/first_hour.md", "CHANGELOG.md", ".github/CONTRIBUTING.md")
PATHS = ("README.md", *(f"{room}/README.md" for room in ROOMS), *BESIDE)


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language and its text."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Page:
    """A Markdown file, by its path in the project."""

    path: str

    @cached_property
    def text(self) -> str:
        return (PROJECT / self.path).read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        found = re.finditer(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [
            Block(self.path, self.text.count("\n", 0, m.start()) + 2, m[1], m[2]) for m in found
        ]

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def anchors(self) -> set[str]:
        """Names of the headings, as GitHub and MkDocs make them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE)
        return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", h.lower()).strip()) for h in headings}

    def wrong_links(self) -> Iterator[str]:
        """Links to files or headings that are not there."""
        for link in re.findall(r"\]\(([^)\s]+)\)", self.prose):
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (PROJECT / self.path).parent / path if path else PROJECT / self.path
            if not target.exists():
                yield link
            elif anchor:
                other = Page(target.resolve().relative_to(PROJECT.resolve()).as_posix())
                if anchor not in other.anchors:
                    yield link


def programs(text: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The programs of ours in a shell block, with their arguments.

    Tools come as the names of their console scripts, modules by their dotted names, scripts by
    their file names.
    """
    for line in text.replace("\\\n", " ").splitlines():
        for command in line.removeprefix("$ ").split("&&"):
            words = shlex.split(command, comments=True)
            for place, word in enumerate(words):
                if name := _program(word, after=words[place - 1] if place else ""):
                    yield name, tuple(words[place + 1 :])
                    break


def _program(word: str, after: str) -> str | None:
    if tool := re.fullmatch(r"(?:.*/)?tools/(\w+)\.py", word):
        return f"densenet-{tool[1].replace('_', '-')}"
    if script := re.fullmatch(r"(?:.*/)?(densenet(?:-[\w-]+)?|\w+\.sh)", word):
        return script[1]
    module = after == "-m" and re.fullmatch(r"densenet_backbones[\w.]*", word)
    return word if module else None


PAGES = tuple(Page(path) for path in PATHS)
BLOCKS = tuple(block for page in PAGES for block in page.blocks)
