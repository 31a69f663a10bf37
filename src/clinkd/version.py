"""The version of the package, and the program as it was started."""

import os
import shlex
import shutil
import sys
from pathlib import Path

__version__ = "0.1.0"


def spell_program() -> str:
    """The words that start this program again from the same folder, such as `clinkd` or `.venv/bin/clinkd`."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return f"{shlex.quote(_shorten(sys.executable))} -m clinkd"
    if program.name != "clinkd" or shutil.which("clinkd") == os.path.abspath(program):
        return "clinkd"
    return shlex.quote(_shorten(str(program)))


def _shorten(path: str) -> str:
    """The path from the folder at hand, where it lies below that."""
    below = os.path.relpath(path)
    return path if below.startswith(os.pardir) else below
