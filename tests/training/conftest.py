"""What tests of runs share."""

import json

import pytest

from asgd.training import checkpoints, loop, progress


@pytest.fixture
def read_metrics():
    """Returns a function from a work directory to its lines of metrics."""
    def read(workdir):
        lines = (workdir / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read


@pytest.fixture
def interrupted(monkeypatch):
    """Returns a function that runs a config until two checkpoints are saved, and one line more.

    No checkpoint knows of that line. The steps of the checkpoints are returned.
    """
    class Interrupted(Exception):
        pass

    def run(config, workdir):
        saves = []
        save, write = checkpoints.Checkpoints.save, progress.MetricsWriter.write

        def save_twice(self, step, *args):
            save(self, step, *args)
            saves.append(step)

        def write_until(self, step, values):
            write(self, step, values)
            if len(saves) == 2 and step > saves[-1]:
                raise Interrupted

        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            patch.setattr(checkpoints.Checkpoints, "save", save_twice)
            patch.setattr(progress.MetricsWriter, "write", write_until)
            loop.train(config, workdir)
        return saves

    return run
