"""The pages that the site is built from; ``.ci/run`` builds it, with warnings as errors."""

import importlib.util

import pytest
from locations import PROJECT
from pages import PATHS

_spec = importlib.util.spec_from_file_location("site", PROJECT / ".github/site/build.py")
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)


def test_every_page_that_tests_read_is_a_guide():
    assert set(site.PAGES) == set(PATHS)


@pytest.mark.parametrize(
    ("source", "link", "expected"),
    [
        ("README.md", "tools/README.md#exportpy", "guide_tools.md#exportpy"),
        ("README.md", ".github/images/memory.png", "images/memory.png"),
        ("heads/README.md", "../configs/README.md", "guide_configs.md"),
        ("heads/README.md", "../README.md#numbers", "index.md#numbers"),
        (".github/CONTRIBUTING.md", "../CHANGELOG.md", "CHANGELOG.md"),
        ("tools/README.md", "#data", "#data"),
        ("tools/README.md", "https://docutils.org/a.md", "https://docutils.org/a.md"),
    ],
)
def test_links_lead_to_pages_of_the_site(source, link, expected):
    text = site.with_own_links(f"see [there]({link}).", source)
    assert text == f"see [there]({expected})."


def test_every_module_has_its_place(tmp_path):
    site.write_reference(tmp_path)
    written = "".join(path.read_text() for path in tmp_path.glob("*.rst"))
    names = list(site.modules())
    assert {"densenet_backbones.features", "densenet_backbones.heads.detection.dsod"} <= set(names)
    for name in names:
        assert f".. automodule:: {name}\n" in written
