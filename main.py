"""Trains a config: python main.py --config=configs/digits.py --workdir=runs/digits

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used.
"""

import json
import logging
import pathlib
import sys

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", help_string="Config file, as configs/digits.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory the run writes to.")
flags.mark_flags_as_required(["config", "workdir"])


def _fail(code, message):
    print(" ".join(f"{message}".split()), file=sys.stderr)
    sys.exit(code)


def _parse(argv):
    try:
        rest = flags.FLAGS(argv)
        _CONFIG.value.keys()  # A config file that cannot be read says so only when asked.
        return rest
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        _fail(2, f"{argv[0]}: --config has no field {name!r}; configs/default.py has them all")
    except Exception as error:  # A config file may raise anything.
        _fail(2, f"{argv[0]}: {error}")


def main(argv):
    if len(argv) > 1:
        _fail(2, f"{argv[0]}: unexpected argument {argv[1]!r}; settings are --config.name=value")
    from asgd.training import loop, validation
    from asgd.workloads import datasets

    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every step it takes.
    log = logging.getLogger("asgd")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    loop.use_compilation_cache()
    try:
        print(json.dumps(loop.train(_CONFIG.value, pathlib.Path(_WORKDIR.value))))
    except (validation.ConfigError, datasets.DatasetNotPrepared) as error:
        _fail(2, f"{argv[0]}: {error}")
    except Exception as error:
        log.debug("failed", exc_info=True)
        _fail(1, f"{argv[0]}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
