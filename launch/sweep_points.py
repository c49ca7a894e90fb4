"""The points of a sweep: which fields they set, checked against the config, and their names."""

import dataclasses
import hashlib
import itertools
import json
import math
import random
import re
from typing import Any, Callable, Sequence

from absl import flags as absl_flags
from ml_collections import config_flags


class SweepError(ValueError):
    """A sweep that cannot be run; exit code 2."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One run: its folder's name, the swept fields, all flags of main.py but --workdir, and its config."""

    name: str
    values: dict[str, str]
    flags: tuple[str, ...]
    config: dict[str, Any]


def points(config_file: str, grid: str, randoms: str, num_samples: int, seed: int,
           extra: Sequence[str] = ()) -> list[Point]:
    """Returns the points of a sweep: every combination of the grid with every sample.

    The samples are the same for each combination of the grid. A field's samples depend on the seed and
    its name only, and the first samples stay the same when more are drawn.

    Args:
      config_file: as main.py's --config.
      grid: values of fields, ``"learning_rate=0.1,0.5 cluster.num_workers=4,8"``.
      randoms: distributions of fields, ``"learning_rate=loguniform(1e-3,1)"``; also ``uniform(a,b)``,
        ``randint(a,b)`` with both ends, and ``choice(a,b,...)``.
      num_samples: how many samples are drawn; 0 without ``randoms``.
      seed: of the samples.
      extra: flags of main.py that all points have.

    Raises:
      SweepError: naming the field or flag that cannot be used.

    Example:
      >>> found = points("configs/digits.py", "learning_rate=0.1,0.5", "momentum=choice(0.5)", 1, 0)
      >>> [point.name for point in found]
      ['learning_rate=0.1,momentum=0.5', 'learning_rate=0.5,momentum=0.5']
    """
    axes = {field: _split(text, ",".__eq__) for field, text in _fields("grid", grid).items()}
    drawn = _fields("random", randoms)
    if not axes and not drawn:
        raise SweepError("--grid or --random must name fields, as --grid='learning_rate=0.1,0.5'")
    if bool(drawn) != (num_samples > 0):
        raise SweepError(f"--num_samples={num_samples} must be at least 1 with --random, and 0 without")
    taken = {flag.lstrip("-").partition("=")[0] for flag in extra}
    for field in [*axes, *drawn]:
        if (field in axes and field in drawn) or f"config.{field}" in taken:
            raise SweepError(f"{field} is set twice: by --grid, --random or a flag after --")
    samples = [dict(zip(drawn, column)) for column in
               zip(*(_draw(field, text, num_samples, seed) for field, text in drawn.items()))] or [{}]
    out = [_point(config_file, dict(zip(axes, values)) | sample, extra)
           for values in itertools.product(*axes.values()) for sample in samples]
    first: dict[str, str] = {}
    for point in out:
        config = json.dumps(point.config, sort_keys=True)
        if config in first:
            raise SweepError(f"points {first[config]} and {point.name} are the same run: each value must be"
                             " given or drawn once (a grid does what choice() alone does)")
        first[config] = point.name
    return out


def _point(config_file, values, extra):
    flags = (f"--config={config_file}", *extra,
             *(f"--config.{field}={value}" for field, value in values.items()))
    # Sorted, so that the same fields in another order are the same folder.
    text = ",".join(f"{field}={values[field]}" for field in sorted(values))
    name = re.sub(r"[^A-Za-z0-9_.,=+-]", "", text)[:100]
    if name != text:
        name += "-" + hashlib.sha256(text.encode()).hexdigest()[:8]
    return Point(name, values, flags, _resolve(flags))


def _resolve(flags):
    """Returns the config that main.py would have, read as main.py reads it."""
    argv = ["main.py", *flags]
    values = absl_flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv, known_only=True)
        return json.loads(config.value.to_json())
    except (AttributeError, KeyError) as error:
        name = str(error).strip("\"'")
        raise SweepError(f"--config has no field {name!r}; configs/default.py has them all") from None
    except Exception as error:  # A config file may raise anything.
        raise SweepError(str(error)) from None


def _split(text: str, separates: Callable[[str], bool]) -> list[str]:
    """Splits a text where it has a separator outside of brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([") - (char in ")]")
        if depth == 0 and separates(char):
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise SweepError(f"brackets in {text!r} do not match")
    return parts


def _fields(flag, text):
    out = {}
    for item in filter(None, _split(text, str.isspace)):
        field, _, value = item.partition("=")
        if not field or not all(_split(value, ",".__eq__)):
            raise SweepError(f"--{flag}: {item!r} must be FIELD=... without spaces and empty values")
        if field in out:
            raise SweepError(f"--{flag} has {field} twice")
        out[field] = value
    return out


def _draw(field, text, count, seed):
    match = re.fullmatch(r"(uniform|loguniform|randint|choice)\((.+)\)", text)
    if not match:
        raise SweepError(f"--random: {field}={text} must be uniform(a,b), loguniform(a,b), randint(a,b)"
                         " or choice(a,b,...)")
    kind, arguments = match[1], _split(match[2], ",".__eq__)
    stream = random.Random(f"{seed} {field}")
    uniforms = [stream.random() for _ in range(count)]
    if kind == "choice":
        return [arguments[int(u * len(arguments))].strip() for u in uniforms]
    try:
        low, high = map(int if kind == "randint" else float, arguments)
    except ValueError:
        low, high = 1, 0
    if not (math.isfinite(low) and math.isfinite(high) and low < high and (kind != "loguniform" or low > 0)):
        raise SweepError(f"--random: {field}={text} must have two numbers, the smaller one first"
                         + " and above 0" * (kind == "loguniform") + " and whole" * (kind == "randint"))
    if kind == "randint":
        return [str(low + int(u * (high - low + 1))) for u in uniforms]
    if kind == "uniform":
        return [_short(low + u * (high - low), low, high) for u in uniforms]
    return [_short(low * (high / low) ** u, low, high) for u in uniforms]


def _short(value, low, high):
    """Returns a number with four digits for the folder's name, but never outside of its bounds."""
    text = f"{value:.4g}"
    return text if low <= float(text) <= high else repr(value)
