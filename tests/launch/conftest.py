"""Programs that stand in for gcloud, srun, sbatch and main.py."""

import os

import pytest


@pytest.fixture
def stubs(tmp_path):
    """Returns a function that writes an executable, and the environment that finds it first."""
    folder = tmp_path / "bin"
    folder.mkdir()
    env = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "STUB": str(tmp_path)}

    def write(name, text):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
        return folder / name

    return write, env
