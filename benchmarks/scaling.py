"""Bytes moved and held per device: the formulas of asgd.emulation.traffic beside compiled programs.

Programs are compiled for 2, 4 and 8 emulated devices and, where `libtpu` is installed, for TPU v5e
slices that need not be there. Columns are bytes on one device, "counted of predicted": what it receives
from others in a `wave`, besides in a `call`, and `within` a wave each time that distances are measured;
the number of `collectives` in a wave; the `state` of the cluster. `temporary_MB` is what the program needs
besides its arguments, and `trees` the same in whole trees of parameters.

`python -m benchmarks.scaling` prints what docs/scaling.md computes from data sheets (benchmarks/slices.py).
"""

import importlib.util
import os
import re
from collections.abc import Iterator
from typing import Any, Optional

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from asgd.cluster import averaging, graphs, schedules
from asgd.emulation import Emulator, inputs, traffic
from asgd.emulation.decentralized import GossipEmulator, make_gossip_tx
from asgd.emulation.driver import Driver, wave_program
from asgd.emulation.local_steps import AveragingEmulator
from asgd.emulation.spmd import AXIS, WHOLE, split_axis
from asgd.emulation.sums import CHUNK
from benchmarks import workloads
from benchmarks.setup import WORKERS, cluster_trace

DEVICES = (8,)
NUM_ROUNDS = 4
SLICES = {4: "v5e:2x2", 8: "v5e:2x4"}
CASES = (
    ("server", "mlp", {}),
    ("server", "mlp", {"snapshot_dtype": jnp.bfloat16}),
    ("server", "mlp", {"events_per_device": 2}),
    ("server", "mlp", {"layout": "replicated"}),
    ("server", "mlp", {"worker_tx": optax.trace(0.9)}),
    ("server", "cnn", {}),
    ("server", "resnet20", {}),
    ("gossip", "mlp", {}),
    ("averaging", "mlp", {}),
)
_COLLECTIVE = re.compile(
    r"= (.*?) (all-to-all|all-gather|all-reduce|reduce-scatter|collective-permute)(?:-done)?\((.*)")
_ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")


def rows(options: Any) -> Iterator[dict[str, Any]]:
    """Compiles and counts the rows of the table."""
    for topology, model, more in CASES:
        if model not in options.models:
            continue
        work = workloads.make(model, NUM_ROUNDS * WORKERS)
        size = sum(x.nbytes for x in jax.tree.leaves(work.params))
        for devices in (2, 4, 8):
            if devices > options.devices:
                continue
            for compiler in ["cpu"] + ["tpu v5e"] * (devices in SLICES and bool(
                    importlib.util.find_spec("libtpu"))):
                driver = make(topology, work, devices, **more)
                compiled = compile_for(driver, work.loss, compiler)
                found = counted(compiled.as_text())
                expected = predicted(topology, work, driver, **more)
                memory = compiled.memory_analysis()
                yield {"topology": topology, "model": model, "options": shown(more), "devices": devices,
                       "compiler": compiler, **{
                           name: "{} of {}".format(*(traffic.received(x[name], devices)
                                                     for x in (found, expected)))
                           for name in ("wave", "call", "within")},
                       "collectives": f"{len(found['wave'])} of {len(expected['wave'])}",
                       "state": f"{memory.alias_size_in_bytes} of {expected['state']}",
                       "temporary_MB": round(memory.temp_size_in_bytes / 1e6, 3),
                       "trees": round(memory.temp_size_in_bytes / size, 2)}


def shown(options: dict[str, Any]) -> str:
    """Returns options as a cell of a table."""
    return ", ".join(
        f"{name}={getattr(value, '__name__', 'momentum' if name == 'worker_tx' else value)}"
        for name, value in options.items())


def counted(hlo: str) -> dict[str, list[traffic.Collective]]:
    """Finds the operations between devices in the text of a compiled program.

    Returns:
      Those of a "call", of a "wave" (in the loop over waves) and in loops "within" a wave.

    Example:
      >>> counted('  %x = (f32[1,2,8]{2,1,0}, bf16[4]{0}) all-to-all(%a, %b), channel_id=1, '
      ...         'metadata={op_name="jit(program)/shard_map/while/body/all_to_all"}')["wave"]
      [Collective(kind='all-to-all', num_bytes=72)]
    """
    out = {"call": [], "wave": [], "within": []}
    for shapes, kind, rest in _COLLECTIVE.findall(hlo):
        num_bytes = sum(  # A bool is a byte.
            np.prod([int(n) for n in sizes.split(",") if n], dtype=int) * int(bits or 8) // 8
            for _, bits, sizes in _ARRAY.findall(shapes))
        where = list(out)[min(rest.count("while/body"), 2)]
        out[where].append(traffic.Collective(kind, int(num_bytes)))
    return out


def predicted(topology: str, work: workloads.Workload, driver: Driver, events_per_device: int = 1,
              layout: str = "sharded", snapshot_dtype: Any = None,
              worker_tx: Any = optax.identity()) -> dict[str, Any]:
    """Returns what `counted` should find, and the bytes of the "state", for what `make` makes."""
    devices = driver.plan.width // events_per_device
    multiple = 1 if topology == "server" else CHUNK
    params = jax.eval_shape(lambda: work.params)
    worker_state = jax.eval_shape(worker_tx.init, params)
    kept = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, snapshot_dtype or x.dtype), params)
    whole, part, snapshot, of_worker = sum(x.nbytes for x in jax.tree.leaves(work.model_state)), *(
        traffic.held(tree, 1 if layout == "replicated" else devices, multiple)
        for tree in (params, kept, worker_state))
    within, of_all = [], WORKERS * of_worker + whole
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
