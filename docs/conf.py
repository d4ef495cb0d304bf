"""Sphinx configuration. `tox -e docs` builds the site; it needs no network, neither to be built nor to be read."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import make_pages  # noqa: E402

import rbd  # noqa: E402

project = "rbd"
author = "the rbd developers"
copyright = "the rbd developers, Apache-2.0"
release = version = rbd.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "_made"]  # _made: tables that pages include
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!rbd\.).*"), ("py:.*", r"rbd\..*\.T")]  # of torch and Python; type variables

myst_enable_extensions = ["attrs_block", "colon_fence", "deflist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
doctest_global_setup = "import torch, rbd"

html_theme = "pydata_sphinx_theme"
html_title = f"rbd {release}"
html_static_path = ["_static"]
html_css_files, html_js_files = ["rbd.css"], ["rbd.js"]
html_show_sourcelink = html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for a site opened from disk
html_theme_options = {
    "logo": {"text": "rbd"},
    "navbar_end": ["theme-switcher"],
    "navbar_align": "left",
    "show_toc_level": 2,
    "collapse_navigation": True,
    "footer_start": ["copyright"],
    "footer_end": [],
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}


def setup(app) -> None:
    app.connect("builder-inited", lambda app: make_pages.write(HERE))
