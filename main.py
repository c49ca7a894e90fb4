"""Trains a config: python main.py --config=configs/digits.py --workdir=runs/digits

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used.
"""

import json
import pathlib

from absl import app

from asgd.training import command

_CONFIG, _WORKDIR = command.define("Directory the run writes to.", workdir_required=True)


def main(argv):
    def train():
        from asgd.training import loop

        loop.use_compilation_cache()
        print(json.dumps(loop.train(_CONFIG.value, pathlib.Path(_WORKDIR.value))))

    command.run(argv, train)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parser(_CONFIG))
