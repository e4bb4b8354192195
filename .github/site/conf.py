"""Settings of the site that ``build.py`` builds: guides and a reference made from docstrings."""

import os

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it asks the package index when it is imported

project = "densenet-backbones"
author = "the densenet-backbones authors"
copyright = f"2026, {author}"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = project
html_show_sourcelink = False
default_role = "py:obj"  # single backticks lead to the object where there is one

# Guides: headings have the names that GitHub gives them.
myst_heading_anchors = 3

# Reference: public names with docstrings, in the order of their files.
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
add_module_names = False
python_use_unqualified_type_names = True
