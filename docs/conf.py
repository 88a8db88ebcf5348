"""How Sphinx builds the site: ``make docs``."""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "extensions"))

import fastxent

project = "fastxent"
version = release = fastxent.__version__
copyright = "the fastxent authors"

# No intersphinx: it reads the inventories of other sites, and the site must build without a network. So annotations are
# left out of signatures, whose types the docstrings give in words.
extensions = [
    "markdown_table",
    "mathematics",
    "matplotlib.sphinxext.plot_directive",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
]
nitpicky = True
root_doc = "index"
exclude_patterns = ["_build"]
default_role = "code"

autodoc_typehints = "none"
autodoc_member_order = "bysource"
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False

plot_formats = [("svg", 100)]
plot_html_show_formats = False
plot_html_show_source_link = False
plot_basedir = str(HERE)

doctest_global_setup = """
import numpy as np
import fastxent as fx
from peers import sklearn, scipy, torch, optax, keras, xgboost, dask
"""

html_theme = "furo"
html_title = f"fastxent {version}"
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
