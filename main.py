"""Trains a config: python main.py --config=configs/digits.py --workdir=runs/digits

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used, 130 interrupted.
"""

import contextlib
import json
import pathlib
import sys

from absl import app

from asgd.training import command

_CONFIG, _WORKDIR = command.define("Directory the run writes to.", workdir_required=True)


def main(argv):
    def train():
        from asgd.training import loop

        loop.use_compilation_cache()
        # Standard output is for the last line, whatever libraries print.
        with contextlib.redirect_stdout(sys.stderr):
            result = loop.train(_CONFIG.value, pathlib.Path(_WORKDIR.value))
        print(json.dumps(result))

    command.run(argv, train)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parser(_CONFIG))
