"""The training loop: run to the next cut, log, evaluate, save."""

import hashlib
import json
import logging
import os
import pathlib
import sys
from typing import Any

from clu import parameter_overview
import jax
import numpy as np
from tqdm import tqdm

from asgd.training import distributed
from asgd.training.build import build
from asgd.training.checkpoints import steps_in
from asgd.training.cuts import Cuts
from asgd.training.progress import Progress
from asgd.training.validation import ConfigError, validate
from asgd.training.workdir import check_unchanged, locked, workdir_path, write_text

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


def train(config: Any, workdir: Any) -> dict[str, Any]:
    """Runs a config to its end, from where it was interrupted if it was.

    In a job of several processes all call this; the first one writes what is written once.

    Args:
      config: the fields of ``configs/default.py``.
      workdir: where ``config.json``, ``trace.npz`` (or ``schedule.npz``), ``metrics.jsonl``,
        TensorBoard events and ``checkpoints/`` go: a directory, or the address of a bucket.

    Returns:
      The run's last line: ``eval_accuracy``, ``eval_loss``, ``gradients``, ``updates``,
      ``virtual_time``, ``gradients_per_second``, ``workdir`` and ``params_digest``; decentralised
      also ``eval_accuracy_worst`` (of the agents) and ``consensus_distance``; with averaging
      ``idle_fraction``, ``discrepancy`` and what the average of the workers reaches; with
      ``on_nonfinite="skip"`` ``skipped``, how many gradients were.

    Raises:
      ConfigError: for a field that cannot be used, before anything is written.
      NonFiniteError: naming event, worker, staleness and leaf; a checkpoint is from before it.
      FloatingPointError: when only the test loss is not finite.
      Preempted: after SIGTERM, when a checkpoint is written.
      OSError: when something could not be written; what was written before stays.
    """
    name, workdir = str(workdir), workdir_path(workdir)
    validate(config)
    if jax.process_count() > 1:
        if config.mode == "record":
            raise ConfigError("mode='record' and a job of several processes do not fit: recorder='ray' has "
                              "workers on many machines")
        config.emulation.num_devices = jax.device_count()
    check_unchanged(config, workdir / "config.json")
    if config.emulation.backend == "debug" and steps_in(workdir):
        raise ConfigError("emulation.backend='debug' begins anew, but workdir has checkpoints: choose a new "
                          "workdir")
    run = build(config)
    run.check_record(workdir / run.record)
    cuts = Cuts(config, run)
    initial = run.task.init(config.seed)
    try:
        # It can also go on from where a SIGTERM stopped it.
        emulator = run.emulator(*initial, config, sorted({*cuts.all, *steps_in(workdir)}))
    except ValueError as error:
        raise ConfigError(f"emulation: {error}") from error
    with locked(workdir):
        check_unchanged(config, workdir / "config.json")
        run.check_record(workdir / run.record)
        distributed.wait_for_all("checked")
        progress = Progress(config, workdir, run, emulator, initial)
        try:
            return _go_on(config, run, cuts, progress, initial[0], name)
        finally:
            progress.close()

def _go_on(config, run, cuts, progress, params, name):
    first = distributed.is_first()
    emulator, state = progress.emulator, progress.state
    if first:
        log.info("Parameters\n%s", parameter_overview.get_parameter_overview(params))
        log.info("%s", run)
        write_text(progress.workdir / "config.json", config.to_json(indent=2) + "\n")
        run.save_record(progress.workdir / run.record)
    if progress.step:
        if first:
            run.save_record(progress.workdir / run.record, progress.step)
        log.info("Resumed after %d gradients", progress.step)
    evaluation = progress.evaluation
    bar = tqdm(total=run.num_events, initial=progress.step, unit="gradient", file=sys.stderr,
               dynamic_ncols=True, smoothing=0.1, disable=not first)
    with bar:
        for stop in (cut for cut in cuts.all if cut > progress.step):
            state = progress.advance(state, stop)
            if stop in cuts.lines:
                metrics = progress.summary()
                if stop in cuts.evaluations:
                    evaluation = run.evaluate(emulator, state)
                    if not np.isfinite(evaluation["eval_loss"]):
                        raise FloatingPointError(
                            f"eval_loss is {evaluation['eval_loss']} after {run.where(stop - 1)}")
                progress.write(metrics, evaluation if stop in cuts.evaluations else {})
                bar.set_postfix_str(_postfix(metrics, evaluation, stop, progress.seconds),
                                    refresh=False)
            bar.update(stop - bar.n)
            progress.save_if_due(state, stop in cuts.checkpoints)

    return {
        **{name: value for name, value in evaluation.items() if not isinstance(value, list)},
        **({"skipped": progress.skipped} if config.on_nonfinite == "skip" else {}),
        "gradients": run.num_events,
        **{"updates": None, "virtual_time": None,
           "gradients_per_second": round(run.num_events / progress.seconds, 1), **run.totals},
        "workdir": name,
        "params_digest": params_digest(emulator.params(state)),
    }


def _postfix(metrics, evaluation, step, seconds):
    shown = {"loss": metrics["loss"], "staleness": metrics["staleness_mean"],
             "virtual": metrics["virtual_time"], "per_s": step / max(seconds, 1e-9)}
    if evaluation:
        shown["accuracy"] = evaluation["eval_accuracy"]
    return json.dumps({k: None if v is None else float(f"{v:.4g}") for k, v in shown.items()},
                      separators=(" ", "=")).replace('"', "").strip("{}")
