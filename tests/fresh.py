"""Python code in a process of its own."""

import os
import subprocess
import sys


def run_python(code, **environment):
    """What the code prints; warnings are errors, and so is failing."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()
