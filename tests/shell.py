"""The shell scripts of ``tools`` as a user runs them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_tool(name: str, *args, **env) -> subprocess.CompletedProcess:
    """Run ``tools/NAME`` by this interpreter, with ``env`` added to the environment."""
    return subprocess.run(
        [ROOT / 'tools' / name, *map(str, args)],
        env={**os.environ, 'PYTHON': sys.executable, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )
