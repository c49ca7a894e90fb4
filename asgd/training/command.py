"""What the command lines share: a config flag, one clear line on failure, exit codes.

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used, 130 interrupted.
"""

import logging
import sys
from typing import Any, Callable

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_flags


def define(workdir: str, workdir_required: bool) -> tuple[Any, Any]:
    """Defines and returns the flags --config and --workdir, of which the latter is described."""
    config = config_flags.DEFINE_config_file("config", help_string="Config file, as configs/digits.py")
    folder = flags.DEFINE_string("workdir", None, workdir)
    flags.mark_flags_as_required(["config", "workdir"][: 1 + workdir_required])
    return config, folder


def fail(code: int, message: Any) -> None:
    """Prints one line and exits."""
    print(" ".join(f"{message}".split()), file=sys.stderr)
    sys.exit(code)


def parser(config: Any) -> Callable[[list[str]], list[str]]:
    """Returns what `absl.app.run` parses flags with."""
    def parse(argv):
        try:
            rest = flags.FLAGS(argv)
            config.value.keys()  # A config file that cannot be read says so only when asked.
            return rest
        except (AttributeError, KeyError) as error:
            name = str(error).strip("\"'")
            fail(2, f"{argv[0]}: --config has no field {name!r}; configs/default.py has them all")
        except Exception as error:  # A config file may raise anything.
            fail(2, f"{argv[0]}: {error}")

    return parse


def run(argv: list[str], do: Callable[[], None]) -> None:
    """Does it, or fails with one line."""
    if len(argv) > 1:
        fail(2, f"{argv[0]}: unexpected argument {argv[1]!r}; settings are --config.name=value")
    from asgd.training import validation
    from asgd.workloads import datasets

    absl_logging.set_verbosity(absl_logging.WARNING)  # Orbax tells every step it takes.
    log = logging.getLogger("asgd")
    log.setLevel(logging.INFO)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    try:
        do()
    except (validation.ConfigError, datasets.DatasetNotPrepared) as error:
        fail(2, f"{argv[0]}: {error}")
    except KeyboardInterrupt:
        fail(130, f"{argv[0]}: interrupted; the same command goes on from the last checkpoint")
    except Exception as error:
        log.debug("failed", exc_info=True)
        fail(1, f"{argv[0]}: {type(error).__name__}: {error}")
