"""The main job, as `make run ONCE=1` does it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_accuracy_served_is_that_of_scikit_learn_to_the_last_image(tmp_path: Path) -> None:
    """The script compares and exits with an error where they differ."""
    job = subprocess.run(
        [sys.executable, ROOT / "examples" / "digits.py", "--once", "--data-dir", tmp_path / "data"],
        capture_output=True,
        text=True,
        check=False,
        timeout=110,
    )
    assert job.returncode == 0, job.stdout + job.stderr
    assert "450 (0 failed)" in job.stdout
