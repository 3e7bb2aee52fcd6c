"""DeepSpeedCPUAdam and what ZeRO-3 with CPU offload does around it."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ....ranks.child import Child
from ..core import interrupt

BUILD_SECONDS = 600  # the longest that building its operator may take
_BUILD = "from deepspeed.ops.op_builder import CPUAdamBuilder; CPUAdamBuilder().load()"
_SAY_SECONDS = 10.0
_TAIL = 240  # characters of the compiler's last words


def build(say: Callable[[str], None], longest: float = BUILD_SECONDS) -> str:
    """Compiles DeepSpeed's operator where that was not done before; "" or why it could not be.

    say: gets the progress. longest: seconds after which it is given up, with all processes of the compiler. They also end
    when Ctrl-C was noted, which raises KeyboardInterrupt.
    """
    with tempfile.TemporaryDirectory(prefix="zeromuon-build-") as folder:
        with Child([sys.executable, "-c", _BUILD], log=Path(folder) / "log") as child:
            try:
                status = interrupt.wait(child, longest, _said_now_and_then(say))
            finally:
                child.kill()  # the compiler's processes, too
        if status is None:
            return f"cpu_adam was not built within {longest:.0f} s"
        return "" if status == 0 else f"cpu_adam was not built: {_last_words(child.log.read_text(errors='replace'))}"


def _said_now_and_then(say: Callable[[str], None]) -> Callable[[], None]:
    started = due = time.monotonic()

    def meanwhile() -> None:
        nonlocal due
        now = time.monotonic()
        if now >= due:
            say(f"loading DeepSpeed's cpu_adam; building it takes minutes the first time, {now - started:.0f} s so far")
            due = now + _SAY_SECONDS

    return meanwhile


def _last_words(output: str) -> str:
    errors = [line.strip() for line in output.splitlines() if "error" in line.lower()]
    return (errors[-1] if errors else " ".join(output.split()))[-_TAIL:]


def prepare_environment() -> None:
    """Before DeepSpeed is imported: it is to use the CPU, and to keep its remarks out of the progress."""
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def optimizer(weight, exp_avg, exp_avg_sq, hyper: dict):
    """A DeepSpeedCPUAdam of one flat fp32 parameter whose states are the given tensors.

    weight: an nn.Parameter with a gradient. hyper: lr, betas, eps, weight_decay.
    """
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    adam = DeepSpeedCPUAdam([weight], adamw_mode=True, **hyper)
    adam.state[weight] = {"step": 1, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
    return adam


def chain(adam, weight, low_precision, gradient_bf16=None) -> Callable:
    """What DeepSpeedZeroOptimizer_Stage3 (deepspeed/runtime/zero/stage3.py) does to a sub-group, on the CPU accelerator:

    _offload_grad_partition_at_boundary  with bf16 gradients: fp32_grad_tensor.copy_(grad_buffer.to(fp32))
    unscale_and_clip_grads               .grad.mul_(1. / combined_scale)
    _optimizer_step                      self.optimizer.step()
    _reassign_or_swap_out_partitioned_parameters  fp16_partitioned_groups_flat.data.copy_(fp32_partitioned_groups_flat.data)

    Left out are the gradient norms, and the temporary of .to(fp32), whose pages can cost more than all the rest: the copy
    converts by itself. combined_scale is 1, so that gradients stay what they are from round to round; the pass is made
    all the same. weight: nn.Parameter, [N] fp32. low_precision: [N] bf16. gradient_bf16: [N], or None.
    """

    def run(_):
        if gradient_bf16 is not None:
            weight.grad.copy_(gradient_bf16)
        weight.grad.mul_(1.0)
        adam.step()
        low_precision.data.copy_(weight.data)

    return run
