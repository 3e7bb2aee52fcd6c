"""What a rank reports: see sitecustomize.py."""

import atexit
import functools
import hashlib
import json
import os
from pathlib import Path

import deepspeed
import deepspeed.ops
from deepspeed.runtime.engine import DeepSpeedEngine

# An optional shared-memory collective that is compiled on first use; gloo gives the same results.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


class Watch:
    """Of the one engine that a rank steps.

    digests: of the whole weights, before the first step and after every step. rates: of the groups, per step.
    """

    def __init__(self):
        self.engine, self.digests, self.rates = None, [], []

    def before_step(self, engine) -> None:
        if self.engine is None:
            self.engine = engine
            self.digests.append(_digest(engine))
        self.rates.append([group["lr"] for group in engine.optimizer.optimizer.param_groups])

    def report(self) -> dict:
        if self.engine is None:
            return {}
        optimizer, scheduler = self.engine.optimizer.optimizer, self.engine.lr_scheduler
        return {
            "optimizer": f"{type(optimizer).__module__}.{type(optimizer).__name__}",
            "scheduler": type(getattr(scheduler, "scheduler", scheduler)).__name__,
            "digests": self.digests,
            "rates": self.rates,
            **_counted(optimizer),
        }


def _counted(optimizer) -> dict:
    """Steps, parameters per role and options of a bound ZeroMuon."""
    if not hasattr(optimizer, "counters") or not optimizer.is_bound:
        return {}
    roles = {spec.name: spec.role for group in optimizer._binding.sub_groups for spec in group.specs}
    return {"steps": optimizer.counters()["steps"], "roles": roles, "options": optimizer._options}


def _digest(engine) -> str:
    digest = hashlib.sha256()
    for param in engine.module.parameters():
        with deepspeed.zero.GatheredParameters([param]):
            digest.update(param.detach().float().numpy().tobytes())
    return digest.hexdigest()


def start(folder: str) -> None:
    watch, step = Watch(), DeepSpeedEngine.step

    @functools.wraps(step)
    def watched_step(engine, *arguments, **keywords):
        watch.before_step(engine)
        result = step(engine, *arguments, **keywords)
        watch.digests.append(_digest(engine))
        return result

    DeepSpeedEngine.step = watched_step
    report = Path(folder) / f"rank{os.environ['RANK']}.json"
    atexit.register(lambda: report.write_text(json.dumps(watch.report())))
