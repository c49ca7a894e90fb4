"""Hostile configs and command lines: one clear line and exit code 2, never a traceback."""

import contextlib
import functools
import io
import logging
import math
import os
import pathlib
import re
import sys

from absl import flags
from configs import default
from hypothesis import HealthCheck, given, settings, strategies as st
import numpy as np
import pytest

from asgd.cluster import Trace
from asgd.training import build, build_averaging, build_gossip, command, every_field, validation
from asgd.training.validation import ConfigError

ROOT = pathlib.Path(__file__).parents[2]
FIELDS = list(every_field.names(default.get_config()))
CHEAP = settings(derandomize=True, deadline=None, database=None,
                 suppress_health_check=[HealthCheck.function_scoped_fixture])
HOSTILE = st.one_of(
    st.sampled_from([
        None, True, False, 0, 1, -1, 2, 1.5, -0.0, 1e-320, 1e-200, 1e308, math.nan, math.inf, -math.inf,
        10**12, 10**30, 10**400, 10**5000, -(10**30), 1j, b"1", "", "1", "nan", "a\nb", "\0", "\udcff",
        "a" * 10**5, (), (1,), (1.5,), [True], (None, 1), ("a",), [[1]], {"a": 1}, {1}, range(3), object(),
        type, len, np.zeros(3), np.array("a"), np.float64(0.5), np.int64(3)]),
    st.integers(), st.floats(), st.text(max_size=20), st.lists(st.integers(-2, 9) | st.floats(), max_size=4),
    st.sampled_from([text for texts in every_field._ONE_OF.values() for text in texts]))


def config_with(changes):
    config = default.get_config()
    config.num_gradients = 20
    for name, value in changes.items():
        *groups, last = name.split(".")
        group = functools.reduce(getattr, groups, config)
        if last in group:
            del group[last]  # And with it the type that a value would have to have.
        setattr(group, last, value)
    return config


def cluster_of(config):
    """Makes what the run would follow, if it is small."""
    if config.num_gradients is None or config.num_gradients > 100 or config.trace_path:
        return
    if config.algorithm in validation.GOSSIP_ALGORITHMS:
        if config.gossip.num_agents <= 32:
            schedule = build_gossip.make_schedule(config, config.num_gradients)
            build_gossip.make_tx(config, 1000, schedule.graph.num_agents, 9)
    elif config.cluster.num_workers > 32:
        return
    elif config.algorithm in validation.AVERAGING_ALGORITHMS:
        build_averaging.make_txs(config, build_averaging.make_schedule(config, 1000), 1000)
    else:
        build.make_tx(config, build.make_trace(config, 1000), 1000)


@pytest.mark.filterwarnings("error")
@settings(CHEAP, max_examples=600)
@given(st.dictionaries(st.sampled_from(FIELDS), HOSTILE, min_size=1, max_size=2),
       st.sampled_from(["asgd", "dc_asgd_a", "ssgd", "pc_asgd", "ad_psgd", "local_sgd", "async_diloco"]))
def test_a_config_is_good_or_refused_in_one_line(changes, algorithm):
    config = config_with({"algorithm": algorithm, **changes})
    try:
        validation.validate(config)
        cluster_of(config)
    except ConfigError as error:
        message = str(error)
        assert "\n" not in message and len(message) < 1000
        assert any(name in message or message.startswith(name.split(".")[0]) for name in changes), message


def kind_of(name):
    """Returns the type that default.py gives a field, and whether None is one of its values."""
    *groups, last = name.split(".")
    group = functools.reduce(getattr, groups, default.get_config())
    return group.get_type(last), group[last] is None


WRONG = {
    bool: [1, 0.0, "True", None], int: [True, 1.5, "1", math.nan, -(10**30), 10**30, 10**5000, None],
    float: [True, "1", math.nan, math.inf, -math.inf, 10**400, 1j, None], str: [1, b"a", "\0", ("a",), None],
    tuple: ["a", 1, {"a": 1}, (None,), (True,), ([1],), (math.nan,), None],
}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_checked(name):
    kind, may_be_none = kind_of(name)
    for value in [*WRONG[kind], object(), np.zeros(3)]:
        if value is None and may_be_none:
            continue
        with pytest.raises(ConfigError, match=rf"^{name} must ") as caught:
            validation.validate(config_with({name: value}))
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name, value", [
    ("cluster.num_workers", 10**12), ("gossip.num_agents", 10**4), ("seed", 2**32), ("batch_size", 2**31),
    ("num_epochs", 1e7), ("warmup_epochs", 1e300), ("model.width", 10**9), ("model.hidden", (10**12,)),
    ("plan.workers", (10**12,)), ("emulation.waves_per_call", 10**12), ("emulation.events_per_device", 10**9),
    ("cluster.compute_time.cv", 1e-200), ("cluster.compute_time.cv", 1e100),  # 1e100 never ended.
    ("cluster.compute_time.mean", 1e300), ("cluster.slowdown", (5e-324,)), ("averaging.merge_time", 1e308),
])
def test_numbers_that_no_machine_can_follow_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"^{name} must "):
        validation.validate(config_with({name: value}))


@pytest.mark.parametrize("name", ["trace_path", "cluster.times_from", "dataset.path"])
@pytest.mark.parametrize("path", ["nowhere.npz", "/", "/dev/zero", "a" * 10**4])
def test_files_that_cannot_be_read_are_refused_before_data_are_loaded(name, path):
    text = {"dataset.name": "text", "model.name": "transformer"} if name == "dataset.path" else {}
    with pytest.raises(ConfigError, match=f"^{name}: .*{path[:50]}"):
        validation.validate(config_with({name: path, **text}))


def test_fields_that_are_none():
    with pytest.raises(ConfigError, match="^bacth_size is no field: configs/default.py has them all"):
        validation.validate(config_with({"bacth_size": 8}))
    with pytest.raises(ConfigError, match="^cluster.workers is no field"):
        validation.validate(config_with({"cluster.workers": 8}))


def test_groups_that_are_missing_or_no_groups():
    config = default.get_config()
    del config.gossip
    with pytest.raises(ConfigError, match="^gossip.graph is missing: start from"):
        validation.validate(config)
    with pytest.raises(ConfigError, match="^cluster.protocol is missing: start from"):
        validation.validate(config_with({"cluster": 3}))


@pytest.mark.parametrize("recording", [
    {"params": {"a": [1], "b": {"c": 1}}}, {"params": {"a": None, "Dense_0/kernel": 1}}, {"params": {}}])
def test_traces_whose_metadata_are_not_as_expected(recording):
    config = config_with({"trace_path": "/"})
    with pytest.raises(ConfigError, match="recorded with another model than model.name='mlp'"):
        validation.check_model(config, Trace([0], [0], metadata={"recording": recording}),
                               build.make_task(config))


def run(arguments, monkeypatch):
    """Runs a command line that validates, and returns its exit code and standard error."""
    log, err, code = logging.getLogger("asgd"), io.StringIO(), 0
    before, handlers, argv = set(flags.FLAGS), list(log.handlers), ["main.py", *arguments]
    monkeypatch.setattr(sys, "argv", argv)  # Where ml_collections looks for overrides.
    sys.modules.pop("config_config", None)  # Its name for what a config file defines.
    try:
        with contextlib.redirect_stderr(err):
            config, _ = command.define("Somewhere.", workdir_required=True)
            command.run(command.parser(config)(argv), lambda: validation.validate(config.value))
    except SystemExit as stop:
        code = stop.code
    finally:
        for name in set(flags.FLAGS) - before:
            delattr(flags.FLAGS, name)
        log.handlers[:], log.propagate = handlers, True
    return code, err.getvalue()


def refused(arguments, monkeypatch):
    code, err = run(arguments, monkeypatch)
    assert code == 2 and err.count("\n") == 1 and "Traceback" not in err, (code, err)
    return err


ARGUMENT = st.one_of(
    st.text(max_size=10),
    st.text("-=.config[]()'\"019ae ,:\\{}", max_size=20).filter(lambda text: "help" not in text),
    st.builds("--config.{}={}".format, st.sampled_from(FIELDS) | st.text(max_size=5),
              st.text(max_size=8) | st.integers().map(str) | st.floats().map(str) |
              st.sampled_from(["None", "(1,", "1e999", "1" * 5000, "[1]", "{}", "__import__('os')"])))


@settings(CHEAP, max_examples=200)
@given(arguments=st.lists(ARGUMENT, min_size=1, max_size=3))
def test_a_command_line_is_good_or_refused_in_one_line(monkeypatch, tmp_path, arguments):
    good = ["--config=configs/digits.py", f"--workdir={tmp_path}"]
    monkeypatch.chdir(ROOT)
    code, _ = run([*good, *arguments], monkeypatch)
    assert code == 0 or refused([*good, *arguments], monkeypatch)


@pytest.mark.parametrize("text, message", [
    ("def get_config(:", "--config: SyntaxError: invalid syntax"),
    ("raise ZeroDivisionError('a\\n  b')", "--config: ZeroDivisionError: a b"),
    ("x = 1", "--config: AttributeError: module .* has no attribute 'get_config'"),
    ("def get_config(): pass", "--config must name a file whose get_config.* a ConfigDict.* got None"),
    ("def get_config(): return {'a': 1}", "--config must name a file .* got {'a': 1}"),
    ("def get_config(): raise TypeError('a\\n b')", "Error whilst parsing config file: TypeError: a b$"),
    ("def get_config(): return get_config()", "--config: RecursionError"),
    ("from ml_collections import ConfigDict as get_config", "mode is missing: start from configs/default.py"),
    ("from configs import default\ndef get_config():\n c = default.get_config()\n c.seed = 'a'\n return c",
     "TypeError: Could not override field 'seed'"),
])
def test_config_files_that_cannot_be_used(monkeypatch, tmp_path, text, message):
    (tmp_path / "config.py").write_text(text)
    err = refused([f"--config={tmp_path}/config.py", f"--workdir={tmp_path}"], monkeypatch)
    assert re.search(message, err), err


@pytest.mark.parametrize("name", ["nope", "plan.targett", "nope.nope", "batchsize"])
def test_fields_on_the_command_line_that_are_none(monkeypatch, tmp_path, name):
    monkeypatch.chdir(ROOT)
    err = refused(["--config=configs/digits.py", f"--workdir={tmp_path}", f"--config.{name}=1"], monkeypatch)
    assert re.search(f"--config has no field '{name.split('.')[-1]}'; configs/default.py has them", err), err


def test_work_directories_that_cannot_be_used(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to("missing")
    monkeypatch.chdir(ROOT)
    for place in ("", tmp_path / "file", tmp_path / "file/x", tmp_path / "nowhere"):
        err = refused(["--config=configs/digits.py", f"--workdir={place}"], monkeypatch)
        assert re.search(f"--workdir='{place}' must be a directory that can be written to", err)
    assert run(["--config=configs/digits.py", f"--workdir={tmp_path}/a/b"], monkeypatch)[0] == 0
    assert not (tmp_path / "a").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    refused(["--config=configs/digits.py", f"--workdir={tmp_path}/a"], monkeypatch)
    assert run(["--config=configs/digits.py", "--workdir=gs://bucket/a"], monkeypatch)[0] == 0
