"""Checks of single fields of a config."""

import math
from typing import Any, Sequence


class ConfigError(ValueError):
    """A field of the config that cannot be used; exit code 2."""


def get_field(config: Any, name: str) -> Any:
    """Returns the field with a dotted name."""
    try:
        for part in name.split("."):
            config = config[part]
        return config
    except KeyError:
        raise ConfigError(f"{name} is missing: start from configs/default.py") from None


def check_one_of(config: Any, name: str, allowed: Sequence[str]) -> None:
    """Raises ConfigError unless the field is one of ``allowed``."""
    value = get_field(config, name)
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_number(config: Any, name: str, least: float = -math.inf, above: float = -math.inf,
                 below: float = math.inf, most: float = math.inf) -> None:
    """Raises ConfigError unless the field is a finite number within the bounds."""
    value = get_field(config, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
            math.isfinite(value) and least <= value <= most and above < value < below):
        bounds = [f"at least {least:g}"] * (least > -math.inf)
        bounds += [f"above {above:g}"] * (above > -math.inf)
        bounds += [f"below {below:g}"] * (below < math.inf)
        bounds += [f"at most {most:g}"] * (most < math.inf)
        raise ConfigError(f"{name} must be a number {' and '.join(bounds)}, got {value!r}")
