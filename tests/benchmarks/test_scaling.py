"""What compiled programs exchange and hold is what the formulas say, to the byte."""

import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from asgd.emulation import traffic
from benchmarks import scaling, workloads


def work(statistics):
    """A model with a leaf that travels alone on 2 devices, one that is padded, and a scalar."""
    rng = np.random.default_rng(0)
    params = {"kernel": jnp.asarray(rng.normal(size=(130, 257)), jnp.float32), "bias": jnp.zeros(257),
              "scale": jnp.ones(())}
    batches = rng.normal(size=(scaling.NUM_ROUNDS * scaling.WORKERS, 2, 130)).astype(np.float32)

    def loss(params, batch):
        hidden = params["scale"] * (batch @ params["kernel"] + params["bias"])
        value = jnp.square(hidden).mean()
        return (value, {"mean": hidden.mean(0)}) if statistics else value

    return workloads.Workload("linear", loss, params, {"mean": jnp.zeros(257)} if statistics else None,
                              batches)


OPTIONS = {"": {}, "2 events": {"events_per_device": 2}, "replicated": {"layout": "replicated"},
           "momentum": {"worker_tx": optax.trace(0.9)}}


@pytest.mark.parametrize("topology, devices, name", [
    ("server", 2, ""), ("server", 4, ""), ("server", 8, ""), ("server", 4, "2 events"),
    ("server", 4, "replicated"), ("server", 2, "momentum"), ("gossip", 8, ""), ("averaging", 4, ""),
])
def test_compiled_programs_move_and_hold_what_the_formulas_say(topology, devices, name):
    options = OPTIONS[name]
    # Batch statistics are gathered whole; a scalar too.
    model = work(statistics=topology != "averaging")
    driver = scaling.make(topology, model, devices, **options)
    compiled = scaling.compile_for(driver, model.loss)
    found = traffic.counted(compiled.as_text())
    expected = scaling.predicted(topology, model, driver, **options)
    for part in ("wave", "call", "within"):
        assert sorted(found[part]) == sorted(expected[part]), part
    assert compiled.memory_analysis().alias_size_in_bytes == expected["state"]


def test_snapshots_in_bfloat16_halve_the_way_out_but_not_on_cpu():
    model, options = work(False), {"snapshot_dtype": jnp.bfloat16}
    driver = scaling.make("server", model, 4, **options)
    compiled = scaling.compile_for(driver, model.loss)
    # The CPU's compiler widens them, as it knows no collective of bfloat16.
    wide = scaling.predicted("server", model, driver)
    assert sorted(traffic.counted(compiled.as_text())["wave"]) == sorted(wide["wave"])
    narrow = scaling.predicted("server", model, driver, **options)
    assert compiled.memory_analysis().alias_size_in_bytes == narrow["state"] < wide["state"]
    way = 4 * 4 * (-(-130 * 257 // 4) + -(-257 // 4))  # 4 parts of 4 bytes an element.
    totals = [sum(c.num_bytes for c in x["wave"]) for x in (wide, narrow)]
    assert totals == [2 * way + 16, way * 3 // 2 + 16]  # And the scalar's gradients.


def test_a_device_receives_as_much_as_in_an_all_reduce():
    size = 4 * 256 * 64 * 2
    for devices in (2, 4, 8, 64):
        moved = traffic.wave(jnp.zeros((256, 128)), devices)
        assert traffic.received(moved, devices) == 2 * size * (devices - 1) // devices
    assert traffic.wave(jnp.zeros((256, 128)), 1) == traffic.sums(jnp.zeros(5), 1, 1) == []


def test_data_sheets():
    chips = scaling.tpu_v5e()
    # All bytes that cross the middle of a pod, at its bisection bandwidth of 1.6 TB/s.
    assert chips.exchange(256, 1e9) == pytest.approx(128 * 0.5e9 / 1.6e12)
    assert chips.all_reduce(256, 1e9) == pytest.approx(256 * 2e9 * 255 / 256 / 51.2e12)
    gpus = scaling.h100("", between=50e9)
    assert gpus.all_reduce(8, 1e9) == pytest.approx(2 * gpus.exchange(8, 1e9))
    # Of 64 parts 56 leave the host; reduced first, an eighth of what 7 of 8 hosts have.
    assert gpus.exchange(64, 1e9) == pytest.approx(56 / 64 * 1e9 / 50e9)
    assert gpus.all_reduce(64, 1e9) == pytest.approx(2 * 1e9 * (7 / 8 / 450e9 + 7 / 8 / 8 / 50e9))
    assert sum(int(np.prod(shape)) for shape in scaling.resnet50()) == 25_557_032


def test_rows(monkeypatch):
    monkeypatch.setattr(scaling, "CASES", (("averaging", "mlp", "", {}),))
    monkeypatch.setattr(workloads, "make", lambda *_, **__: work(False))
    monkeypatch.setattr(scaling, "SLICES", {})
    (row,) = scaling.rows(types.SimpleNamespace(models=["mlp"], devices=2))
    # 16 workers' sums of 64 elements: of 33,410 and 257 elements, and of the scalar.
    assert row["within"] == f"{16 * 4 * (262 + 3 + 1)} of {16 * 4 * (262 + 3 + 1)}"
    shapes = [(64, 64), ()]
    paper = scaling.on_paper(scaling.tpu_v5e(link=1.0), 16, "", shapes, 0)
    # Once there and once back, of 64 * 64 / 16 elements by 16 devices; 8 * 8 of 16 * 16 pairs cross 4
    # links; and the scalar's gradients.
    assert paper["exchange_ms"] == pytest.approx(1e3 * (2 * 4 * 64 * 64 + 4 * 16) * 16 / 4 / 4)
