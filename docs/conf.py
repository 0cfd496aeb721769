"""The documentation site: ``make docs`` builds docs/_build/html, each page also as plain Markdown beside it."""

import os
import sys
from pathlib import Path

from prudent import __version__

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "_ext"))

project, author, release = "Prudent", "The Prudent authors", __version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_markdown_builder",
    "generated_pages",
]
html_theme, html_title = "furo", f"Prudent {__version__}"
html_static_path: list[str] = []
exclude_patterns = ["_build", "_ext"]
highlight_language = "none"  # commands and tables; Python is marked as such
smartquotes = False  # they'd turn --out into a dash
copybutton_prompt_text = "$ "
suppress_warnings = ["mystnb.unknown_mime_type", "myst-nb.lexer"]  # the latter where tutorials don't run
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
autodoc_typehints = "none"  # the signature shows them
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 100

# Tutorials run when the pages are built; a cell that fails stops the build.
nb_execution_mode, nb_execution_raise_on_error, nb_execution_timeout = "auto", True, 900
nb_execution_in_temp = True
nb_merge_streams = True
nb_output_stderr = "remove"  # progress; of a cell that fails it is shown
os.environ.update(
    PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    PYTHONPATH=os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]),  # tests.tiny
    PRUDENT_CACHE=str(HERE / "_build" / "cache"),
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
    TQDM_DISABLE="1",
    NO_COLOR="1",
    TERM="dumb",
    COLUMNS="100",
    OMP_NUM_THREADS="1",
)
