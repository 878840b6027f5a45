"""The site of the documents: `make docs` builds it into build/docs, and fails where a link or a docstring is wrong."""

from importlib.metadata import version as version_of

project = "ccm"
copyright = "the authors of ccm"
release = version_of("compressed-context-memory")
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
include_patterns = ["*.md", "docs/**", "reproductions/*/README.md", "src/ccm/models/**/MODEL_CARD.md"]
root_doc = "docs/index"
html_theme = "furo"
html_title = f"ccm {release}"
html_extra_path = ["site"]  # the first page of the site leads to docs/index.html
html_static_path = ["style"]
html_css_files = ["wide.css"]
nb_execution_mode = "off"  # docs/tour.ipynb has its outputs; a test runs it
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
