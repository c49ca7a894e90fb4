"""Trains a config: python main.py --config=configs/digits.py --workdir=runs/digits

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used, 130 interrupted,
143 stopped by SIGTERM after a checkpoint: the same command goes on.
"""

import json
import os

from absl import app

from asgd.training import command, distributed

_CONFIG, _WORKDIR = command.define("Directory the run writes to.", workdir_required=True)


def main(argv):
    def train():
        from asgd.training import loop

        loop.use_compilation_cache()
        result = loop.train(_CONFIG.value, _WORKDIR.value)
        if distributed.is_first():
            print(json.dumps(result), file=last_line, flush=True)

    # Standard output is for the last line, whatever libraries print, those in C++ too.
    last_line = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        distributed.initialize()
    except ValueError as error:
        command.fail(2, f"{argv[0]}: {error}")
    command.run(argv, train)


if __name__ == "__main__":
    app.run(main, flags_parser=command.parser(_CONFIG))
