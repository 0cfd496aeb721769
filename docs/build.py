"""Build the site: docs/_build/html, and each page as plain Markdown beside it. A warning is an error.

python docs/build.py            # what `make docs` does: the tutorials run
python docs/build.py --no-run   # text alone, seconds
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD = HERE / "_build"


def sphinx(builder: str, *options: str) -> None:
    """One builder; all share what was read, so that tutorials run once. Two pages are read at a time."""
    folders = [str(HERE), str(BUILD / builder)]
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-d", str(BUILD / "doctrees"), "-b", builder]
    if subprocess.run([sys.executable, *command, *options, *folders]).returncode:
        raise SystemExit(1)


def main() -> None:
    options = ["-D", "nb_execution_mode=off"] if "--no-run" in sys.argv[1:] else []
    sphinx("html", *options)
    sphinx("markdown", *options)
    for page in (BUILD / "markdown").rglob("*.md"):
        beside = BUILD / "html" / page.relative_to(BUILD / "markdown")
        beside.write_text(page.read_text("utf-8"), "utf-8")
    print(f"{BUILD / 'html' / 'index.html'}")


if __name__ == "__main__":
    main()
