"""Checks of single fields of a config."""

import math
import sys
from typing import Any, Callable, Sequence

from asgd.cluster import storage
from asgd.cluster.checks import short, show

LARGEST = 2**31 - 1  # Of integers: what counts gradients is an int32.


# Fields that change how a run is executed, but not what it computes.
FREE = ("emulation.num_devices", "emulation.backend", "emulation.layout", "emulation.waves_per_call",
        "dataset.data_dir", "dataset.streaming", "dataset.read_threads", "dataset.prefetch",
        "checkpoint.every_gradients", "checkpoint.every_seconds", "checkpoint.keep",
        "checkpoint.allow_changes")


class ConfigError(ValueError):
    """A field of the config that cannot be used; exit code 2."""


def get_field(config: Any, name: str) -> Any:
    """Returns the field with a dotted name."""
    try:
        for part in name.split("."):
            config = config[part]
        return config
    except (KeyError, TypeError):
        raise ConfigError(f"{name} is missing: start from configs/default.py") from None
    except Exception as error:  # What a reference of the user's computes.
        raise ConfigError(f"{name} cannot be read: {short(str(error))}") from None


def check_one_of(config: Any, name: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError unless the field is one of ``allowed``."""
    value = get_field(config, name)
    if not isinstance(value, str) or value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {show(value)}")


def check_number(config: Any, name: str, **bounds: float) -> None:
    """Raises ConfigError unless the field is a finite number, within ``least``, ``above`` ..."""
    value = get_field(config, name)
    if not _is_number(value, **bounds):
        raise ConfigError(f"{name} must be a number{_bounds(**bounds)}, got {show(value)}")


def check_integer(config: Any, name: str, least: int, most: int = LARGEST) -> None:
    """Raises ConfigError unless the field is an integer within the bounds."""
    value = get_field(config, name)
    if not _is_integer(value, least, most):
        raise ConfigError(f"{name} must be an integer from {least} to {most}, got {show(value)}")


def check_bool(config: Any, name: str) -> None:
    """Raises ConfigError unless the field is True or False."""
    value = get_field(config, name)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {show(value)}")


def check_text(config: Any, name: str) -> None:
    """Raises ConfigError unless the field is a text."""
    value = get_field(config, name)
    if not isinstance(value, str) or "\0" in value:
        raise ConfigError(f"{name} must be a text (\"\" for none), got {show(value)}")


def check_file(config: Any, name: str) -> None:
    """Raises ConfigError unless the field names a file that can be read."""
    try:
        storage.open_file(get_field(config, name)).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from None


def check_numbers(config: Any, name: str, **bounds: float) -> None:
    """Raises ConfigError unless the field is a tuple of finite numbers within those bounds."""
    _check_tuple(config, name, lambda value: _is_number(value, **bounds), f"numbers{_bounds(**bounds)}")


def check_integers(config: Any, name: str, least: int, most: int = LARGEST) -> None:
    """Raises ConfigError unless the field is a tuple of integers within the bounds."""
    _check_tuple(config, name, lambda value: _is_integer(value, least, most),
                 f"integers from {least} to {most}")


def check_texts(config: Any, name: str) -> None:
    """Raises ConfigError unless the field is a tuple of texts."""
    _check_tuple(config, name, lambda value: isinstance(value, str), "texts")


def _check_tuple(config: Any, name: str, fits: Callable[[Any], bool], what: str) -> None:
    values = get_field(config, name)
    if not isinstance(values, (tuple, list)):
        raise ConfigError(f"{name} must be a tuple that holds {what}, got {show(values)}")
    for value in values:
        if not fits(value):
            raise ConfigError(f"{name} must hold {what}, got {show(value)}")


def _is_integer(value, least, most):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value, least=-math.inf, above=-math.inf, below=math.inf, most=math.inf):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (
        abs(value) <= sys.float_info.max and least <= value <= most and above < value < below)


def _bounds(least=-math.inf, above=-math.inf, below=math.inf, most=math.inf):
    bounds = [f"at least {least:g}"] * (least > -math.inf)
    bounds += [f"above {above:g}"] * (above > -math.inf)
    bounds += [f"below {below:g}"] * (below < math.inf)
    bounds += [f"at most {most:g}"] * (most < math.inf)
    return f" {' and '.join(bounds)}" if bounds else ""
