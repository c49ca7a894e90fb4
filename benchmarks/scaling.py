"""Bytes moved and held per device: formulas of asgd.emulation.traffic beside compiled programs.

Programs are compiled for 2, 4 and 8 emulated devices and, where `libtpu` is installed, for TPU v5e
slices that need not be there. Columns are bytes on one device, "counted of predicted": what it receives
from others in a `wave`, besides in a `call`, and `within` a wave each time that distances are measured;
the number of `collectives` in a wave; the `state` of the cluster. `temporary_MB` is what the program needs
besides its arguments, and `trees` the same in whole trees of parameters.

`python -m benchmarks.scaling` prints the time of a wave on machines that are not here, with the formula
and the data sheets of docs/scaling.md, and how full waves are.
"""

import importlib.util
import math
import os
from collections.abc import Iterator
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

import asgd
from asgd.cluster import averaging, graphs, protocols, schedules, timing
from asgd.emulation import Emulator, inputs, traffic
from asgd.emulation.decentralized import GossipEmulator, make_gossip_tx
from asgd.emulation.driver import Driver
from asgd.emulation.program import wave_program
from asgd.emulation.local_steps import AveragingEmulator
from asgd.emulation.spmd import AXIS, WHOLE, split_axis
from asgd.emulation.sums import CHUNK
from asgd.emulation.waves import plan_waves
from benchmarks import workloads
from benchmarks.setup import WORKERS, cluster_trace

DEVICES = (8,)
NUM_ROUNDS = 4
SLICES = {4: "v5e:2x2", 8: "v5e:2x4"}
# Assumed on paper: part of the peak that a gradient reaches, seconds of a collective, part of the
# memory for activations and data. Whole trees that a wave needs, as compiled for 8 chips.
UTILIZED, LATENCY, FREE, TREES = 0.4, 20e-6, 0.25, 4.0
CASES = (
    ("server", "mlp", "", {}),
    ("server", "mlp", "bfloat16 snapshots", {"snapshot_dtype": jnp.bfloat16}),
    ("server", "mlp", "2 events a device", {"events_per_device": 2}),
    ("server", "mlp", "replicated", {"layout": "replicated"}),
    ("server", "mlp", "momentum of workers", {"worker_tx": optax.trace(0.9)}),
    ("server", "mlp", "8192 wide", {"hidden": (8192, 8192)}),
    ("server", "cnn", "", {}),
    ("server", "resnet20", "", {}),
    ("gossip", "mlp", "", {}),
    ("averaging", "mlp", "", {}),
)


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Compiles and counts the rows of the table."""
    for topology, model, name, more in CASES:
        if model not in options.models:
            continue
        more = dict(more)
        work = workloads.make(model, NUM_ROUNDS * WORKERS, hidden=more.pop("hidden", (256, 256)))
        size = sum(x.nbytes for x in jax.tree.leaves(work.params))
        for devices in (2, 4, 8):
            if devices > options.devices:
                continue
            for compiler in ["cpu"] + ["tpu v5e"] * (devices in SLICES and bool(
                    importlib.util.find_spec("libtpu"))):
                driver = make(topology, work, devices, **more)
                compiled = compile_for(driver, work.loss, compiler)
                found = traffic.counted(compiled.as_text())
                expected = predicted(topology, work, driver, **more)
                memory = compiled.memory_analysis()
                yield {"topology": topology, "model": model, "options": name, "devices": devices,
                       "compiler": compiler, **{
                           part: "{} of {}".format(*(traffic.received(x[part], devices)
                                                     for x in (found, expected)))
                           for part in ("wave", "call", "within")},
                       "collectives": f"{len(found['wave'])} of {len(expected['wave'])}",
                       "state": f"{memory.alias_size_in_bytes} of {expected['state']}",
                       "temporary_MB": round(memory.temp_size_in_bytes / 1e6, 3),
                       "trees": round(memory.temp_size_in_bytes / size, 2)}


def predicted(topology: str, work: workloads.Workload, driver: Driver, events_per_device: int = 1,
              layout: str = "sharded", snapshot_dtype: Any = None,
              worker_tx: Any = optax.identity()) -> dict[str, Any]:
    """Returns what `traffic.counted` should find, and the bytes of the "state", for what `make` makes."""
    devices = driver.plan.width // events_per_device
    multiple = 1 if topology == "server" else CHUNK
    params = jax.eval_shape(lambda: work.params)
    worker_state = jax.eval_shape(worker_tx.init, params)
    kept = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, snapshot_dtype or x.dtype), params)
    whole, part, snapshot, of_worker = sum(x.nbytes for x in jax.tree.leaves(work.model_state)), *(
        traffic.held(tree, 1 if layout == "replicated" else devices, multiple)
        for tree in (params, kept, worker_state))
    within = []
    if topology == "server":
        state = part + driver.plan.num_slots * snapshot + WORKERS * of_worker + whole
    elif topology == "gossip":  # This round's and the next; the distance, and rounds so far.
        state = WORKERS * (2 * part + of_worker + whole) + 4 + 4
        within = traffic.sums(params, devices, num_rows=1)
    else:  # Workers and what they count from; the copy, what is released; one distance, two numbers.
        state = WORKERS * (2 * part + of_worker + whole) + 2 * part + 4 + 4 + 4
        within = traffic.sums(params, devices, num_rows=WORKERS)
    wave = traffic.wave(params, devices, events_per_device, layout=layout, multiple=multiple,
                        worker_state=worker_state, statistics=work.model_state,
                        snapshot_dtype=snapshot_dtype)
    losses = traffic.Collective("all-gather", 4 * driver.plan.width * driver.waves_per_call)
    return {"wave": wave, "call": [losses], "within": within, "state": state}


def make(topology: str, work: workloads.Workload, devices: int, **options: Any) -> Driver:
    """Returns the emulator of 16 workers with SGD; those of averaging measure once."""
    options = dict(options, num_devices=devices, model_state=work.model_state)
    tx, args = optax.sgd(0.01), (work.batches,)
    if topology == "server":
        trace = cluster_trace(NUM_ROUNDS * WORKERS, WORKERS)
        return Emulator(work.loss, tx, work.params, trace, *args, **options)
    if topology == "gossip":
        return GossipEmulator(work.loss, make_gossip_tx(tx, "dsgd"), work.params,
                              schedules.constant(graphs.ring(WORKERS)), NUM_ROUNDS, *args, **options)
    schedule = averaging.cyclic(WORKERS, NUM_ROUNDS, period=NUM_ROUNDS)
    return AveragingEmulator(work.loss, tx, work.params, schedule, *args, **options)


def compile_for(driver: Driver, loss: Any, compiler: str = "cpu") -> Any:
    """Compiles a driver's program: its own, or the same for a slice of TPU v5e."""
    spmd, call = driver._spmd, driver._call
    arguments = [driver._shapes, driver._feed.data, None, driver._constants, None]
    _, _, arguments[2], arguments[4] = driver._prepare(0, min(driver.waves_per_call, driver.plan.num_waves))
    specs = (driver._specs, WHOLE, split_axis(0), WHOLE, WHOLE)
    if compiler != "cpu":
        from jax.experimental import topologies

        os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
        devices = topologies.get_topology_desc(SLICES[spmd.num_devices], "tpu").devices
        spmd._mesh = Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))
        call = spmd.compile(wave_program(
            inputs.uniform_loss(loss, driver._model_state is not None), driver._topology, driver._feed,
            spmd.num_devices, driver._topology._layout.num_parts,
            batched=driver.plan.width > spmd.num_devices),
            specs, (driver._specs, (WHOLE, WHOLE)), donate=(0,))
    return call.lower(*jax.tree.map(
        lambda x, spec: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=spmd.sharding(spec)),
        tuple(arguments), jax.tree.broadcast(specs, tuple(arguments)))).compile()


class Machine(NamedTuple):
    """Devices of a data sheet: operations, bytes and bytes of memory a second, and seconds of
    collectives of (devices, bytes of the result on a device)."""

    name: str
    flops: float
    memory: float
    bandwidth: float
    exchange: Callable[[int, float], float]
    all_reduce: Callable[[int, float], float]


def tpu_v5e(link: float = 50e9) -> Machine:
    """A square mesh of chips with links of so many bytes a second each way; 256 are a torus."""
    def ways(devices):
        return 2 if devices == 256 else 1  # A ring has two ways across.

    def exchange(devices, size):  # Half of what half of the devices have crosses the middle.
        return devices * size / 4 / (math.isqrt(devices) * ways(devices) * link)

    def all_reduce(devices, size):  # Along both axes at once.
        return 2 * size * (devices - 1) / devices / (2 * ways(devices) * link)

    return Machine("TPU v5e", 197e12, 16e9, 819e9, exchange, all_reduce)


def h100(name: str, between: float, inside: float = 450e9) -> Machine:
    """Hosts of 8 GPUs; bytes a second of a GPU each way, to other hosts and to its own host's."""
    def exchange(devices, size):
        return size / devices * max(7 / inside, (devices - 8) / between)

    def all_reduce(devices, size):  # Hosts reduce first: an eighth a GPU goes between them.
        return 2 * size * (7 / 8 / inside + (1 - 8 / devices) / 8 / between)

    return Machine(name, 989e12, 80e9, 3.35e12, exchange, all_reduce)


def resnet50() -> list[Any]:
    """Returns the shapes of ResNet-50's parameters."""
    shapes, inputs = [(7, 7, 3, 64), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for kernel in [(1, 1, inputs, width), (3, 3, width, width), (1, 1, width, 4 * width),
                           *[(1, 1, inputs, 4 * width)] * (block == 0)]:
                shapes += [kernel, kernel[-1:], kernel[-1:]]
            inputs = 4 * width
    return [*shapes, (2048, 1000), (1000,)]


def transformer(width: int = 2048) -> list[Any]:
    """Returns the shapes of a transformer's parameters, 20 blocks."""
    return [(32_000, width)] + 20 * [(width,), (width, 3 * width), (width, width), (width,),
                                     (width, 4 * width), (4 * width, width)]


def on_paper(machine: Machine, devices: int, model: str, shapes: list[Any], flops: float
             ) -> dict[str, Any]:
    """Returns a row: the time of a wave of one event a device, and how many snapshots fit."""
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    size, part = traffic.held(params, 1), traffic.held(params, devices)
    collectives = traffic.wave(params, devices)
    gradient = flops / (UTILIZED * machine.flops)
    exchange = sum(machine.exchange(devices, c.num_bytes) for c in collectives)
    reduce = machine.all_reduce(devices, size)
    wave = gradient + exchange + LATENCY * len(collectives) + 10 * size / machine.bandwidth
    step = gradient + reduce + LATENCY + 3 * size / machine.bandwidth
    free = (1 - FREE) * machine.memory - TREES * size - part
    return {"model": model, "machine": machine.name, "devices": devices, **{
        f"{name}_ms": round(1e3 * seconds, 1) for name, seconds in (
            ("gradient", gradient), ("exchange", exchange), ("wave", wave), ("all_reduce", reduce))},
            "exchange_share": round(exchange / wave, 2), "over_synchronous": round(step / wave, 2),
            "snapshots": max(0, int(free // part))}


def filled() -> Iterator[dict[str, Any]]:
    """Plans waves of asynchronous workers, and tells how full they are: events over places."""
    for name, compute in (("constant", timing.constant(1.0)), ("gamma, cv 0.5", timing.gamma(1.0, 0.5)),
                          ("exponential", timing.exponential(1.0))):
        for workers in (16, 64, 256, 1024):
            trace = asgd.simulate(protocols.asynchronous(), timing.Timing(compute), workers, 40_000, seed=0)
            yield {"compute times": name, "workers": workers, **{
                f"width {width}": round(plan_waves(trace, width).utilization, 3)
                for width in (8, 16, 64, 256)}}


MACHINES = ((tpu_v5e(), (16, 64, 256)), (h100("H100, 400 Gb/s a GPU", 50e9), (8, 16, 64)),
            (h100("H100, 100 Gb/s a host", 100e9 / 8 / 8), (16, 64)))
# Operations of a gradient: 3 times 8.2e9 for each of 128 images; 6 a parameter for each of 8192 tokens.
MODELS = (("ResNet-50", resnet50(), 3 * 8.2e9 * 128), ("transformer", transformer(), 6 * 1.07e9 * 8192))

if __name__ == "__main__":
    from benchmarks.__main__ import table

    print(table([on_paper(machine, devices, *model) for model in MODELS for machine, numbers in MACHINES
                 for devices in numbers]), table(list(filled())), sep="\n\n")
