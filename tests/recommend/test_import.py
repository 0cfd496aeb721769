"""The recommender is an optional extra: nothing of it is imported by the rest."""

from __future__ import annotations

import subprocess
import sys


def test_the_command_line_imports_nothing_of_the_recommender() -> None:
    names = "('prudent.recommend', 'implicit')"
    code = f"import sys, prudent.cli; prudent.cli.app; print([m for m in sys.modules if m.startswith({names})])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
