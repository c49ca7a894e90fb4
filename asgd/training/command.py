"""What the command lines share: a config flag, one clear line on failure, exit codes.

Exit codes: 0 done, 1 a run-time failure, 2 a config or flag that cannot be used, 130 interrupted,
143 stopped by SIGTERM.
"""

import logging
import os
import pathlib
import re
import signal
import sys
from typing import Any, Callable

from absl import flags
from absl import logging as absl_logging
from ml_collections import config_dict, config_flags

from asgd.cluster.checks import show


def define(workdir: str, workdir_required: bool) -> tuple[Any, Any]:
    """Defines and returns the flags --config and --workdir, of which the latter is described."""
    config = config_flags.DEFINE_config_file("config", help_string="Config file, as configs/digits.py")
    folder = flags.DEFINE_string("workdir", None, workdir)
    if workdir_required:
        flags.mark_flag_as_required("workdir")
    return config, folder


def fail(code: int, message: Any) -> None:
    """Prints one line and exits."""
    print(" ".join(f"{message}".split()), file=sys.stderr)
    sys.exit(code)


def parser(config: Any) -> Callable[[list[str]], list[str]]:
    """Returns what `absl.app.run` parses flags with."""
    def parse(argv):
        absl_logging.set_verbosity(absl_logging.ERROR)  # What is wrong is said once.
        try:
            rest = flags.FLAGS(argv)
            if config.value is not None:
                config.value.keys()  # A config file that cannot be read says so only when asked.
            if not isinstance(config.value, config_dict.ConfigDict):
                fail(2, f"{argv[0]}: --config must name a file whose get_config() returns a ConfigDict, as "
                        f"configs/digits.py, got {show(config.value)}")
        except flags.Error as error:
            fail(2, f"{argv[0]}: {_without_traceback(str(error))}")
        except Exception as error:  # A config file may raise anything.
            named = re.fullmatch(r"\W*([\w.]+)\W*(n?Did you mean .*)?", str(error), re.DOTALL)
            if named and isinstance(error, (AttributeError, KeyError)):
                fail(2, f"{argv[0]}: --config has no field {named[1]!r}; configs/default.py has them all")
            fail(2, f"{argv[0]}: --config: {type(error).__name__}: {error}")
        _check_workdir(argv[0])
        return rest

    return parse


def _without_traceback(text):
    """Returns what was raised in a config file without where, which ml_collections adds."""
    first, *traceback = text.split("Traceback (most recent call last):")
    if not traceback:
        return text
    return first + re.split(r"(?m)^ {2,}.*\n", traceback[-1])[-1]


def _check_workdir(program):
    if flags.FLAGS.workdir is None or "://" in flags.FLAGS.workdir:
        return
    place = pathlib.Path(flags.FLAGS.workdir).absolute()
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    if not flags.FLAGS.workdir or not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        why = f": {place} is not one" if flags.FLAGS.workdir else ""
        fail(2, f"{program}: --workdir={flags.FLAGS.workdir!r} must be a directory that can be written to, "
                f"or be made{why}")


def run(argv: list[str], do: Callable[[], None]) -> None:
    """Does it, or fails with one line."""
    if len(argv) > 1:
        fail(2, f"{argv[0]}: unexpected argument {argv[1]!r}; settings are --config.name=value")
    try:
        _run(argv, do)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Once is enough.
        fail(130, f"{argv[0]}: interrupted; the same command goes on from the last checkpoint")


def _run(argv, do):
    from asgd.training import distributed, interruption, validation
    from asgd.workloads import datasets

    # Orbax tells every step that it takes, and tracebacks of what it raises anyway.
    absl_logging.set_verbosity(absl_logging.FATAL)
    # And what its threads leave behind when a checkpoint cannot be read.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = lambda unraisable: None
    log = logging.getLogger("asgd")
    log.setLevel(logging.INFO if distributed.is_first() else logging.ERROR)
    log.addHandler(logging.StreamHandler())
    log.propagate = False
    try:
        do()
    except (validation.ConfigError, datasets.DatasetNotPrepared) as error:
        fail(2, f"{argv[0]}: {error}")
    except interruption.Preempted as error:
        fail(143, f"{argv[0]}: {error}")
    except Exception as error:
        log.debug("failed", exc_info=True)
        fail(1, f"{argv[0]}: {type(error).__name__}: {error}")
