"""The manual. Built by `tox -e docs`, where a warning is an error."""

import sys
from pathlib import Path

from pygments.lexers.sql import PostgresLexer
from sphinx.application import Sphinx

# So that it can be built from a checkout in which nothing is installed but Sphinx.
sys.path.insert(0, str(Path(__file__).parents[1]))

import pgcron_lite

project = "pgcron_lite"
author = "the pgcron_lite authors"
copyright = "2026 the pgcron_lite authors"
release = pgcron_lite.__version__
version = ".".join(release.split(".")[:2])

extensions = ["myst_parser", "sphinx.ext.autodoc"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_type_aliases = {name: name for name in ("Duration", "Due", "EventName", "State", "TimeZone", "When")}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
# Docstrings write `code` with single backticks.
default_role = "code"
smartquotes = False

html_theme = "furo"
html_title = f"pgcron_lite {release}"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["manual.css"]


def setup(app: Sphinx) -> None:
    # The SQL of these pages is PostgreSQL's, with its dollar quotes.
    app.add_lexer("sql", PostgresLexer)
