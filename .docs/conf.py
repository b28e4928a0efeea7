"""Sphinx settings: `sphinx-build -W .docs <folder>` renders the API reference from the docstrings."""

import fastce

project = "fastce"
copyright = "The fastce developers"
release = version = fastce.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.autosummary", "numpydoc", "myst_parser"]
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
autosummary_generate = True
autodoc_typehints = "none"  # the docstrings say more about types than the annotations
numpydoc_show_class_members = False
html_theme = "alabaster"
html_theme_options = {
    "description": "Softmax cross-entropy for NumPy",
    "page_width": "1100px",
    "sidebar_width": "240px",
}
html_show_sourcelink = False
html_copy_source = False
