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

from asgd.training.build import build
from asgd.training.checkpoints import Checkpoints
from asgd.training.cuts import Cuts
from asgd.training.metrics import MetricsWriter
from asgd.training.validation import ConfigError, check_unchanged, validate

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


def train(config: Any, workdir: pathlib.Path) -> dict[str, Any]:
    """Runs a config to its end, from where it was interrupted if it was.

    Args:
      config: the fields of ``configs/default.py``.
      workdir: where ``config.json``, ``trace.npz`` (or ``schedule.npz``), ``metrics.jsonl``,
        TensorBoard events and ``checkpoints/`` go.

    Returns:
      The run's last line: ``eval_accuracy``, ``eval_loss``, ``gradients``, ``updates``,
      ``virtual_time``, ``gradients_per_second``, ``workdir`` and ``params_digest``; decentralised
      also ``eval_accuracy_worst`` (of the agents) and ``consensus_distance``; with averaging
      ``idle_fraction``, ``discrepancy`` and what the average of the workers reaches.

    Raises:
      ConfigError: for a field that cannot be used, before anything is written.
      NonFiniteLossError: naming event, worker and staleness; what was written stays.
    """
    validate(config)
    if (workdir / "config.json").exists():
        check_unchanged(config, workdir / "config.json")
    run = build(config)
    run.check_record(workdir / run.record)
    cuts = Cuts(config, run)
    params, model_state = run.task.init(config.seed)
    try:
        emulator = run.emulator(params, model_state, config, cuts.all)
    except ValueError as error:
        raise ConfigError(f"emulation: {error}") from error

    workdir.mkdir(parents=True, exist_ok=True)
    (workdir / "config.json.tmp").write_text(config.to_json(indent=2) + "\n")
    os.replace(workdir / "config.json.tmp", workdir / "config.json")
    run.save_record(workdir / run.record)
    log.info("Parameters\n%s", parameter_overview.get_parameter_overview(params))
    log.info("%s", run)

    # The plain Python reference is for stepping through, not for runs to come back to.
    checkpoints = (None if config.emulation.backend == "debug"
                   else Checkpoints(workdir, config.checkpoint.keep))
    found = checkpoints and checkpoints.latest()
    if found:
        start, arrays, progress = found
        state = emulator.load(arrays)
        run.save_record(workdir / run.record, start)
        log.info("Resumed after %d gradients", start)
    else:
        start, progress = 0, {"metrics_bytes": 0, "seconds": 0.0, "evaluation": {}}
        state = emulator.init()
    writer = MetricsWriter(workdir, start, progress["metrics_bytes"])

    seconds, evaluation = progress["seconds"], progress["evaluation"]
    bar = tqdm(total=run.num_events, initial=start, unit="gradient", file=sys.stderr,
               dynamic_ncols=True, smoothing=0.1)
    try:
        for stop in (cut for cut in cuts.all if cut > start):
            began = time.perf_counter()
            state, losses = emulator.run(state, start, stop)
            seconds += time.perf_counter() - began
            metrics = run.summary(start, stop, losses)
            if stop in cuts.evaluations:
                evaluation = run.evaluate(emulator, state)
                metrics |= evaluation
                if not np.isfinite(evaluation["eval_loss"]):
                    raise FloatingPointError(
                        f"eval_loss is {evaluation['eval_loss']} after {run.where(stop - 1)}")
            writer.write(stop, metrics)
            bar.set_postfix_str(_postfix(metrics, evaluation, stop, seconds), refresh=False)
            bar.update(stop - start)
            if checkpoints and stop in cuts.checkpoints:
                progress = {"metrics_bytes": writer.position, "seconds": seconds,
                            "evaluation": evaluation}
                run.save_record(workdir / run.record, stop)
                checkpoints.save(stop, emulator.save(state), progress)
            start = stop
    finally:
        bar.close()
        run.close(emulator)
        writer.close()
        if checkpoints:
            checkpoints.close()

    return {
        **{name: value for name, value in evaluation.items() if not isinstance(value, list)},
        "gradients": run.num_events,
        **{"updates": None, "virtual_time": None,
           "gradients_per_second": round(run.num_events / seconds, 1), **run.totals},
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
