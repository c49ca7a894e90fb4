"""The training loop: run to the next cut, log, evaluate, save."""

import hashlib
import json
import logging
import os
import pathlib
import sys
import time
from typing import Any

from clu import parameter_overview
import jax
import numpy as np
from tqdm import tqdm

from asgd.emulation import make_emulator
from asgd.training.build import Run, build
from asgd.training.checkpoints import Checkpoints
from asgd.training.metrics import MetricsWriter
from asgd.training.validation import (
    ConfigError,
    check_same_trace,
    check_unchanged,
    validate,
)

log = logging.getLogger("asgd")


def params_digest(params: Any) -> str:
    """Returns the SHA-256 over the parameters' bytes, leaf by leaf in tree order."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def use_compilation_cache() -> None:
    """Keeps compiled programs for the next process, unless the user has chosen a place."""
    if jax.config.jax_compilation_cache_dir is None:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(home) / "asgd" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


class Cuts:
    """The events at which a run stops for a moment, and why."""

    def __init__(self, config: Any, run: Run):
        total = len(run.trace)
        epoch = run.sampler.num_examples / config.batch_size
        passes = np.cumsum(run.trace.applied) / epoch
        if passes[-1] / config.evaluate_every_epochs > total:
            raise ConfigError("evaluate_every_epochs must be at least one gradient, "
                              f"{1 / epoch:g}, got {config.evaluate_every_epochs}")
        marks = np.arange(1, int(passes[-1] / config.evaluate_every_epochs) + 1)
        events = np.searchsorted(passes, marks * config.evaluate_every_epochs) + 1
        self.evaluations = set(np.minimum(events, total).tolist()) | {total}
        self.checkpoints = set(range(0, total, config.checkpoint.every_gradients)) | {total}
        every = set(range(0, total, config.log_every))
        self.all = sorted((every | self.evaluations | self.checkpoints) - {0})


def summarize(run: Run, batch_size: int, start: int, stop: int, losses: np.ndarray):
    """Returns the metrics of the events ``start .. stop - 1``."""
    trace, applied = run.trace, run.trace.applied[start:stop]
    staleness = trace.staleness[start:stop][applied]
    return {
        "updates": int(trace.version[stop - 1]) + int(trace.updates[stop - 1]),
        "virtual_time": float(trace.finish_time[stop - 1]),
        "epoch": int(trace.applied[:stop].sum()) * batch_size / run.sampler.num_examples,
        "loss": float(np.mean(losses, dtype=np.float64)),
        "staleness_mean": float(staleness.mean()) if staleness.size else None,
    }


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs a config to its end, from where it was interrupted if it was.

    Args:
      config: the fields of ``configs/default.py``.
      workdir: where ``config.json``, ``trace.npz``, ``metrics.jsonl``, TensorBoard events and
        ``checkpoints/`` go.

    Returns:
      The run's last line: ``eval_accuracy``, ``eval_loss``, ``gradients``, ``updates``,
      ``virtual_time``, ``gradients_per_second``, ``workdir`` and ``params_digest``.

    Raises:
      ConfigError: for a field that cannot be used, before anything is written.
      NonFiniteLossError: naming event, worker and staleness; what was written stays.
    """
    validate(config)
    if (workdir / "config.json").exists():
        check_unchanged(config, workdir / "config.json")
    run = build(config)
    check_same_trace(run.trace, workdir / "trace.npz")
    cuts = Cuts(config, run)
    params, model_state = run.task.init(config.seed)
    options = config.emulation
    try:
        emulator = make_emulator(
            run.task.loss_fn, run.tx, params, run.trace, run.task.batches(run.sampler),
            num_devices=options.num_devices, backend=options.backend, layout=options.layout,
            waves_per_call=options.waves_per_call or None, worker_tx=run.worker_tx,
            snapshot_dtype=options.snapshot_dtype or None,
            events_per_device=options.events_per_device,
            seed=config.seed, model_state=model_state,
            model_state_decay=config.model_state_decay, cuts=cuts.all)
    except ValueError as error:
        raise ConfigError(f"emulation: {error}") from error

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json.tmp").write_text(config.to_json(indent=2) + "\n")
    os.replace(workdir / "config.json.tmp", workdir / "config.json")
    run.trace.save(workdir / "trace.npz")
    log.info("Parameters\n%s", parameter_overview.get_parameter_overview(params))
    log.info("Trace\n%s", run.trace)

    # The plain Python reference is for stepping through, not for runs to come back to.
    checkpoints = (None if options.backend == "debug"
                   else Checkpoints(workdir, config.checkpoint.keep))
    found = checkpoints and checkpoints.latest()
    if found:
        start, arrays, progress = found
        state = emulator.load(arrays)
        log.info("Resumed after %d gradients", start)
    else:
        start, progress = 0, {"metrics_bytes": 0, "seconds": 0.0, "evaluation": {}}
        state = emulator.init()
    writer = MetricsWriter(workdir, start, progress["metrics_bytes"])

    seconds, evaluation = progress["seconds"], progress["evaluation"]
    bar = tqdm(total=len(run.trace), initial=start, unit="gradient", file=sys.stderr,
               dynamic_ncols=True, smoothing=0.1)
    try:
        for stop in (cut for cut in cuts.all if cut > start):
            began = time.perf_counter()
            state, losses = emulator.run(state, start, stop)
            seconds += time.perf_counter() - began
            metrics = summarize(run, config.batch_size, start, stop, losses)
            if stop in cuts.evaluations:
                evaluation = run.task.evaluate(emulator.params(state), emulator.model_state(state))
                metrics |= evaluation
                if not np.isfinite(evaluation["eval_loss"]):
                    raise FloatingPointError(
                        f"eval_loss is {evaluation['eval_loss']} after event {stop - 1} (worker "
                        f"{run.trace.worker[stop - 1]}, staleness {run.trace.staleness[stop - 1]})")
            writer.write(stop, metrics)
            bar.set_postfix_str(_postfix(metrics, evaluation, stop, seconds), refresh=False)
            bar.update(stop - start)
            if checkpoints and stop in cuts.checkpoints:
                progress = {"metrics_bytes": writer.position, "seconds": seconds,
                            "evaluation": evaluation}
                checkpoints.save(stop, emulator.save(state), progress)
            start = stop
    finally:
        bar.close()
        writer.close()
        if checkpoints:
            checkpoints.close()

    total = len(run.trace)
    return {
        **evaluation,
        "gradients": total,
        "updates": run.trace.num_updates,
        "virtual_time": float(run.trace.finish_time[-1]),
        "gradients_per_second": round(total / seconds, 1),
        "workdir": str(workdir),
        "params_digest": params_digest(emulator.params(state)),
    }


def _postfix(metrics, evaluation, step, seconds):
    shown = {"loss": metrics["loss"], "staleness": metrics["staleness_mean"],
             "virtual": metrics["virtual_time"], "per_s": step / max(seconds, 1e-9)}
    if evaluation:
        shown["accuracy"] = evaluation["eval_accuracy"]
    return json.dumps({k: None if v is None else float(f"{v:.4g}") for k, v in shown.items()},
                      separators=(" ", "=")).replace('"', "").strip("{}")
