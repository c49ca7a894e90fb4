"""Every bad field is refused with its name and what it may be."""

import json

from configs import cifar10, cifar10_resnet20, default, digits, mnist
import numpy as np
import pytest

from asgd.cluster import Trace
from asgd.training import build, validation, workdir
from asgd.training.validation import ConfigError


@pytest.mark.parametrize("module", [cifar10, cifar10_resnet20, digits, mnist])
def test_shipped_configs_are_valid(module):
    validation.validate(module.get_config())


@pytest.mark.parametrize("changes, message", [
    ({"algorithm": "adam"}, "algorithm must be one of sgd, ssgd, asgd.*'adam'"),
    ({"dataset.name": "imagenette"}, "dataset.name must be one of cifar10, digits, mnist, imagenet"),
    ({"model.name": "vgg"}, "model.name must be one of .*resnet20"),
    ({"schedule": "linear"}, "schedule must be one of constant, cosine, step"),
    ({"cluster.protocol": "bsp"}, "cluster.protocol must be one of auto"),
    ({"cluster.pull": "never"}, "cluster.pull must be one of after, before"),
    ({"cluster.compute_time.distribution": "normal"},
     "cluster.compute_time.distribution must be one of constant, exponential"),
    ({"emulation.backend": "xmap"}, "emulation.backend must be one of"),
    ({"emulation.layout": "rows"}, "emulation.layout must be one of"),
    ({"emulation.snapshot_dtype": "int8"}, "emulation.snapshot_dtype must be one of .*bfloat16"),
    ({"emulation.events_per_device": 0}, "emulation.events_per_device must be an integer from 1"),
    ({"batch_size": 0}, "batch_size must be an integer from 1 to .*, got 0"),
    ({"cluster.num_workers": 0}, "cluster.num_workers must be an integer from 1 to 1000000"),
    ({"seed": -1}, "seed must be an integer from 0 to 4294967295"),
    ({"learning_rate": float("nan")}, "learning_rate must be a number .*nan"),
    ({"learning_rate": -0.1}, "learning_rate must be a number at least 0"),
    ({"momentum": 1.0}, "momentum must be a number at least 0 and below 1"),
    ({"cluster.compute_time.mean": 0.0}, "cluster.compute_time.mean must be a number at least 1e-09"),
    ({"num_epochs": -1.0}, "num_epochs must be a number above 0"),
    ({"num_gradients": 0}, "num_gradients must be an integer from 1 to"),
    ({"num_epochs": None}, "num_epochs or num_gradients must be set"),
    ({"schedule": "step"}, "schedule='step' needs schedule_epochs"),
    ({"schedule_epochs": (3.0, 1.0)}, "schedule_epochs must grow"),
    ({"cluster.slowdown": (1.0, -2.0)}, "cluster.slowdown must hold numbers at least 1e-06 .*, got -2.0"),
    ({"cluster.slowdown": (1.0,) * 9}, "cluster.slowdown has 9 factors.*num_workers=8"),
    ({"staleness_rule": "square"}, "staleness_rule: .*'square' is unknown; the rules are"),
    ({"staleness_rule": "hinge(1)"}, "staleness_rule: .*hinge takes two numbers"),
    ({"dataset.augment": True}, "dataset.augment=True is for cifar10 and imagenet, but dataset.name='digits'"),
    ({"algorithm": "ssgd", "cluster.protocol": "asynchronous"},
     "algorithm='ssgd' and cluster.protocol='asynchronous' do not fit"),
    ({"algorithm": "asgd", "cluster.protocol": "hardsync"},
     "algorithm='asgd' and cluster.protocol='hardsync' do not fit"),
    ({"algorithm": "sgd"}, "algorithm='sgd' and cluster.num_workers=8 do not fit"),
    ({"cluster.protocol": "softsync"}, "cluster.softsync_n=0 and cluster.num_workers=8"),
    ({"cluster.softsync_n": 9}, "cluster.softsync_n=9 and cluster.num_workers=8"),
    ({"algorithm": "ssgd", "cluster.softsync_n": 2}, "cluster.softsync_n=2 and cluster.protocol"),
    ({"cluster.protocol": "k_sync", "cluster.k": 2},
     "algorithm='staleness_aware' and cluster.protocol='k_sync' do not fit: .* takes asynchronous or "
     "softsync or k_async or k_batch_async or ssp or staleness_threshold"),
    ({"algorithm": "ssgd", "cluster.protocol": "ssp", "cluster.staleness_bound": 2},
     "this algorithm takes hardsync or k_sync or k_batch_sync or backup_workers"),
    ({"algorithm": "ssgd", "cluster.protocol": "k_sync"},
     "cluster.k=None and cluster.num_workers=8 do not fit: with k_sync, k must be 1 to num_workers"),
    ({"algorithm": "ssgd", "cluster.protocol": "k_sync", "cluster.k": 9}, "cluster.k=9 and cluster.num"),
    ({"cluster.protocol": "k_async", "cluster.k": 0}, "cluster.k must be an integer from 1"),
    ({"cluster.protocol": "k_async", "cluster.k": True}, "cluster.k must be an integer from 1 to .*got True"),
    ({"cluster.protocol": "k_batch_async"},
     "cluster.k=None and cluster.protocol='k_batch_async' do not .* k must be an integer at least 1"),
    ({"algorithm": "ssgd", "cluster.protocol": "k_batch_sync", "cluster.k": 2.5},
     "cluster.k must be an integer .*got 2.5"),
    ({"algorithm": "ssgd", "cluster.protocol": "backup_workers"},
     "cluster.spare_workers=None .* spare_workers must be 0 to num_workers - 1"),
    ({"algorithm": "ssgd", "cluster.protocol": "backup_workers", "cluster.spare_workers": 8},
     "cluster.spare_workers=8 and cluster.num_workers=8 do not fit"),
    ({"cluster.protocol": "ssp"},
     "cluster.staleness_bound=None .* staleness_bound must be an integer at least 0"),
    ({"cluster.protocol": "staleness_threshold", "cluster.staleness_bound": -1},
     "cluster.staleness_bound must be an integer from 0 to"),
    ({"cluster.protocol": "staleness_threshold", "cluster.staleness_bound": 1,
      "cluster.on_late": "stop"}, "cluster.on_late must be one of drop, cancel, got 'stop'"),
    ({"cluster.k": 2}, "cluster.k=2 and cluster.protocol='asynchronous' .*staleness_aware.* do not "
     "fit: k is for k_sync or k_batch_sync or k_async or k_batch_async"),
    ({"algorithm": "ssgd", "cluster.spare_workers": 0}, "spare_workers is for backup_workers"),
    ({"cluster.protocol": "softsync", "cluster.softsync_n": 2, "cluster.staleness_bound": 0},
     "staleness_bound is for ssp or staleness_threshold"),
    ({"cluster.protocol": "ssp", "cluster.staleness_bound": 2, "cluster.on_late": "drop"},
     "on_late is for staleness_threshold"),
    ({"cluster.protocol": "k_batch_async", "cluster.k": 2, "cluster.pull": "before"},
     "cluster.pull='before' and cluster.protocol='k_batch_async' .* pull is for asynchronous or"),
    ({"algorithm": "local_sgd", "cluster.k": 2},
     "cluster.k=2 and algorithm='local_sgd' do not fit: its protocol is under averaging"),
    ({"emulation.backend": "jit", "emulation.num_devices": 2},
     "emulation.backend='jit' and emulation.num_devices=2 do not fit"),
    ({"emulation.backend": "debug", "emulation.num_devices": 2}, "emulation.backend='debug' and"),
])
def test_bad_fields(changes, message):
    config = default.get_config()
    config.num_epochs = 1.0
    with config.ignore_type():
        config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message) as caught:
        validation.validate(config)
    assert "\n" not in str(caught.value)


def with_trace(tmp_path, **changes):
    Trace(worker=[0, 1, 0], read_version=[0, 0, 1]).save(tmp_path / "trace.npz")
    config = default.get_config()
    config.trace_path = str(tmp_path / "trace.npz")
    config.update_from_flattened_dict(changes)
    validation.validate(config)
    return config


def test_trace_with_staleness_is_not_synchronous(tmp_path):
    config = with_trace(tmp_path, algorithm="ssgd")
    with pytest.raises(ConfigError, match="algorithm='ssgd' and trace_path=.*row 1 has staleness 1"):
        build.make_trace(config, num_examples=100)


def test_trace_too_short(tmp_path):
    config = with_trace(tmp_path, num_gradients=4)
    with pytest.raises(ConfigError, match="num_gradients=4, but the trace at .* has 3"):
        build.make_trace(config, num_examples=100)


def test_trace_is_cut_to_the_wanted_length(tmp_path):
    assert len(build.make_trace(with_trace(tmp_path, num_gradients=2), 100)) == 2
    assert len(build.make_trace(with_trace(tmp_path), 100)) == 3


@pytest.mark.parametrize("content", [None, b"", b"worker,read_version\n0,0\n"])
def test_unreadable_trace(tmp_path, content):
    path = tmp_path / "bad.npz"
    if content is not None:
        path.write_bytes(content)
    config = default.get_config()
    config.trace_path = str(path)
    with pytest.raises(ConfigError, match="trace_path: .*bad.npz"):
        build.make_trace(config, 100)


def test_batch_larger_than_the_data():
    config = default.get_config()
    config.num_epochs = 1.0
    config.batch_size = 1438
    with pytest.raises(ConfigError, match="batch_size must be an integer from 1 to 1437"):
        build.build(config)


PROTOCOLS = [
    ("ssgd", {"protocol": "k_sync", "k": 3}, {"k": 3, "cancels": True, "waits": True}),
    ("ssgd", {"protocol": "k_batch_sync", "k": 9}, {"k": 9, "cancels": True, "waits": False}),
    ("ssgd", {"protocol": "backup_workers", "spare_workers": 2}, {"spare": 2}),
    ("asgd", {"protocol": "k_async", "k": 3}, {"k": 3}),
    ("dc_asgd_a", {"protocol": "k_batch_async", "k": 9}, {"k": 9}),
    ("dc_asgd_c", {"protocol": "ssp", "staleness_bound": 0}, {"s": 0}),
    ("staleness_aware", {"protocol": "staleness_threshold", "staleness_bound": 2},
     {"s": 2, "on_late": "drop"}),
    ("asgd", {"protocol": "staleness_threshold", "staleness_bound": 2, "on_late": "cancel"},
     {"s": 2, "on_late": "cancel", "cancels": True, "waits": False}),
    ("asgd", {"protocol": "asynchronous", "pull": "before"}, {"pull": "before"}),
    ("asgd", {"softsync_n": 2, "pull": "before"}, {"n": 2, "pull": "before"}),
]


@pytest.mark.parametrize("algorithm, fields, expected", PROTOCOLS)
def test_protocols(algorithm, fields, expected):
    config = default.get_config()
    config.algorithm, config.num_epochs = algorithm, 2.0
    config.cluster.update(fields)
    validation.validate(config)
    trace = build.make_trace(config, num_examples=1000)
    assert trace.metadata["protocol"] == {"protocol": fields.get("protocol", "softsync"), **expected}
    # Two epochs of 1000 samples in batches of 16, rounded up; dropped gradients are not counted.
    assert np.count_nonzero(trace.applied) == 125 and trace.applied[-1]
    assert (len(trace) > 125) == (fields.get("protocol") == "backup_workers" or "drop" in
                                  expected.values())
    assert trace.metadata["num_gradients"] == len(trace)
    config.num_gradients = 125
    assert len(build.make_trace(config, 1000)) == 125


def test_a_replayed_trace_is_cut_after_as_many_applied_gradients(tmp_path):
    trace = Trace([0, 1, 0, 1, 0], [0, 0, 1, 1, 2], applied=[True, False, True, False, True])
    trace.save(tmp_path / "trace.npz")
    config = default.get_config()
    config.trace_path = str(tmp_path / "trace.npz")
    for epochs, length in ((1.0, 1), (2.0, 3), (3.0, 5), (9.0, 5)):  # An epoch is one gradient.
        config.num_epochs = epochs
        assert len(build.make_trace(config, 16)) == length


def test_runs_from_before_a_field_was_there_can_be_resumed(tmp_path):
    config = default.get_config()
    old = json.loads(config.to_json())
    for name in ("k", "spare_workers", "staleness_bound", "on_late"):
        del old["cluster"][name]
    (tmp_path / "config.json").write_text(json.dumps(old))
    workdir.check_unchanged(config, tmp_path / "config.json")
    config.cluster.k = 2
    with pytest.raises(ConfigError, match=r"\(cluster.k=None, now 2\)"):
        workdir.check_unchanged(config, tmp_path / "config.json")
