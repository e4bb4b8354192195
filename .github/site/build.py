"""Build the site: ``python .github/site/build.py build/site``, then open its ``index.html``.

The READMEs become guides, each package a page of the reference with its modules. Pages are written
beside the site and given to Sphinx, for which every warning is an error.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from sphinx.cmd.build import build_main

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
PACKAGE = "densenet_backbones"
ROOMS = (PACKAGE, "heads", "configs", "tools", "tests")
MEASURED = {
    **{f"configs/{task}/README.md": f"measured_{task}.md" for task in ("det", "seg", "cls")},
    f"{PACKAGE}/benchmark/README.md": "measured_speed.md",
}
# Page of the repository -> page of the site.
PAGES = {
    "README.md": "index.md",
    **{f"{room}/README.md": f"guide_{room}.md" for room in ROOMS},
    **MEASURED,
    "tools/first_hour.md": "first_hour.md",
    "CHANGELOG.md": "CHANGELOG.md",
    ".github/CONTRIBUTING.md": "CONTRIBUTING.md",
}
FILES = ("CITATION.cff", ".github/docker/Dockerfile")
TOC = "\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{pages}\n```\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pages and build the site from them.

    Returns:
        Sphinx's exit status.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="made anew; the site, and its pages in _pages")
    folder = parser.parse_args(arguments).folder
    shutil.rmtree(folder, ignore_errors=True)
    pages = folder / "_pages"
    write_guides(pages)
    write_reference(pages)
    strict = ["--fail-on-warning", "--keep-going", "--quiet"]
    return int(build_main([*strict, "-c", str(HERE), str(pages), str(folder)]))


# -- guides -------------------------------------------------------------------------------------


def write_guides(folder: Path) -> None:
    """Copy the READMEs and their pictures, with links that lead to the site's pages."""
    shutil.copytree(PROJECT / ".github" / "images", folder / "images")
    for source, page in PAGES.items():
        text = (PROJECT / source).read_text(encoding="utf-8")
        (folder / page).write_text(with_own_links(text, source), encoding="utf-8")
    for name in FILES:
        place = folder / name.removeprefix(".github/")
        place.parent.mkdir(exist_ok=True)
        shutil.copy(PROJECT / name, place)
    trees = {
        "Guides": [
            "first_hour",
            *(f"{room} <{PAGES[f'{room}/README.md'].removesuffix('.md')}>" for room in ROOMS),
        ],
        "Measurements": [page.removesuffix(".md") for page in MEASURED.values()],
        "Reference": [PACKAGE],
        "Project": ["CHANGELOG", "CONTRIBUTING"],
    }
    with (folder / "index.md").open("a", encoding="utf-8") as index:
        for caption, pages in trees.items():
            index.write(TOC.format(caption=caption, pages="\n".join(pages)))


def with_own_links(text: str, source: str) -> str:
    """The text of a page with each relative link as the site, which is flat, has its target."""

    def replaced(link: re.Match[str]) -> str:
        path, _, anchor = link[1].partition("#")
        if "://" in link[1] or not path:
            return link[0]
        target = ((PROJECT / source).parent / path).resolve().relative_to(PROJECT).as_posix()
        place = PAGES.get(target, target.removeprefix(".github/"))
        return f"]({place}#{anchor})" if anchor else f"]({place})"

    return re.sub(r"\]\(([^)\s]+)\)", replaced, text)


# -- reference ----------------------------------------------------------------------------------


def write_reference(folder: Path) -> None:
    """Write a page for each package, with a section for each of its modules."""
    names = list(modules())
    packages = {name.rpartition(".")[0] for name in names} - {""}
    for package in packages:
        modules_in = [n for n in names if n.rpartition(".")[0] == package and n not in packages]
        inside = [n for n in names if n.rpartition(".")[0] == package and n in packages]
        text = f"{section(package, '=')}   :no-members:\n"
        if inside:
            text += "\n.. toctree::\n   :maxdepth: 1\n\n"
            text += "".join(f"   {name}\n" for name in inside)
        text += "".join(f"\n{section(module, '-')}" for module in modules_in)
        (folder / f"{package}.rst").write_text(text, encoding="utf-8")


def section(module: str, underline: str) -> str:
    """A heading with a module's name in the package, and the directive that documents it."""
    title = module.removeprefix(f"{PACKAGE}.")
    return f"{title}\n{underline * len(title)}\n\n.. automodule:: {module}\n"


def modules() -> Iterator[str]:
    """Dotted name of each module, a package before its modules."""
    folders = {PACKAGE: PROJECT / PACKAGE, f"{PACKAGE}.heads": PROJECT / "heads"}
    for prefix, folder in folders.items():
        for path in sorted(folder.rglob("*.py")):
            if path.is_relative_to(PROJECT / PACKAGE / "heads") or path.stem == "__main__":
                continue  # heads comes by its own folder
            parts = path.relative_to(folder).with_suffix("").parts
            yield ".".join((prefix, *(part for part in parts if part != "__init__")))


if __name__ == "__main__":
    sys.exit(main())
