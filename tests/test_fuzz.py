"""Files damaged at random raise only ImageError: quickly, quietly and in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

COUNT = 20_000


def test_nothing_but_image_errors_comes_out_of_damaged_files() -> None:
    program = Path(__file__).with_name("fuzz.py")
    done = subprocess.run(
        [sys.executable, str(program), str(COUNT)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result = json.loads(done.stdout)
    assert result["read"] + result["refused"] == COUNT
    assert result["read"] > COUNT / 10 and result["refused"] > COUNT / 10
    assert result["kinds"] > 80
    assert result["grown"] < 200  # MB; the largest allowed picture takes 4
    # The decoders of AVIF, and of PNG in OpenCV, sometimes print to stderr.
    assert len(done.stderr.splitlines()) < COUNT / 200, done.stderr[:3000]
