"""How Sphinx makes the site out of these pages: `make docs`. It asks the network for nothing."""

from typing import Any

from sphinx.application import Sphinx

import groupmix_sam

project = "groupmix-sam"
author = "the groupmix-sam authors"
copyright = "the groupmix-sam authors"  # noqa: A001  Sphinx's own name
version = release = groupmix_sam.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
nitpicky = False

html_theme = "furo"
html_title = f"groupmix-sam {version}"
html_static_path: list[str] = []
html_show_sourcelink = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#00664a", "color-brand-content": "#00664a"},
    "dark_css_variables": {"color-brand-primary": "#3cc79d", "color-brand-content": "#3cc79d"},
}

# Links between pages go to headings as GitHub names them.
myst_heading_anchors = 3

# The docstrings write code in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88


def is_left_out(_app: Sphinx, _what: str, _name: str, member: Any, skip: bool, _options: Any) -> bool:
    """Leave out the fields of named tuples, of which Python itself says no more than their number."""
    return skip or type(member).__name__ == "_tuplegetter"


def setup(app: Sphinx) -> None:
    """Connect the above."""
    app.connect("autodoc-skip-member", is_left_out)
