"""The command line `zeromuon VERB`. Only the chosen verb imports what it needs: --help is quick."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from .. import __version__
from ..base.parser import Parser
from ..base.shipped import config_file
from ..base.words import nearest

VERBS = {
    "finetune": "train a Hugging Face language model with ZeRO-3, Muon and CPU offload",
    "ckpt": "inspect, verify, compare, export, reshard and convert checkpoints; starts without torch",
    "compare": "run DeepSpeed's own Muon and this one side by side, defect by defect",
    "bench": "measure kernels and whole steps beside DeepSpeed's, torch's and the speed of the machine",
}
DEFAULT_CONFIG = "zero3_muon_offload.json"
DEMO = {"steps": 40, "save_every": 20, "seq_len": 64, "verify": True}
FAILED, BAD_INPUT, INTERRUPTED = 1, 2, 130


def main(argv: list[str] | None = None) -> int:
    """Runs the verb in `argv` (default: the process's arguments) and returns the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else BAD_INPUT
    try:
        if arguments[0] == "--version":
            print(f"zeromuon {__version__}")
            return 0
        require_verb(arguments[0])
        if arguments[0] == "finetune":
            return finetune(arguments[1:])
        package = "zeromuon" if arguments[0] == "ckpt" else __package__
        return importlib.import_module(f"{package}.{arguments[0]}.command").run(arguments[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:  # before or after the work of a verb, which says more itself
        print("\ninterrupted", file=sys.stderr)
        return INTERRUPTED
    except OSError as error:
        print(f"error: {error.filename or arguments[0]}: {error.strerror or error}", file=sys.stderr)
        return FAILED


def usage() -> str:
    verbs = "\n".join(f"  {verb:<10} {purpose}" for verb, purpose in VERBS.items())
    return (
        f"usage: zeromuon VERB [options]\n\nverbs:\n{verbs}\n\n`zeromuon VERB --help` tells a verb's"
        " options.\n\n`python -m zeromuon SCRIPT.py ...` (or -m MODULE) runs an unmodified training script in which the"
        ' DeepSpeed\noptimizer types "ZeroMuon" and "Muon" are this package\'s.'
    )


def require_verb(word: str) -> None:
    """Raises ValueError that names the nearest verb if `word` is not one."""
    if word in VERBS:
        return
    from ..ckpt.options import VERBS as CHECKPOINT_VERBS

    whole = {**dict(zip(VERBS, VERBS)), **{verb: f"zeromuon ckpt {verb}" for verb in CHECKPOINT_VERBS}}
    meant = nearest(word, whole)
    hint = f'; did you mean "{whole[meant]}"?' if meant else ""
    raise ValueError(f'zeromuon {word}: expected a verb ({", ".join(VERBS)}), found "{word}"{hint}')


def finetune_parser() -> Parser:
    """The options of `zeromuon finetune`; an option that is not given is None."""
    parser = Parser(prog="zeromuon finetune", description=VERBS["finetune"])
    add, flag = parser.add_argument, {"action": "store_true", "default": None}
    add("--model", metavar="PATH", help="folder of a Hugging Face causal or masked language model")
    add("--data", metavar="PATH", help="UTF-8 text file, or a folder of them; the last tenth is held out")
    add("--config", metavar="FILE", help=f"DeepSpeed configuration, stage 3 (default: configs/{DEFAULT_CONFIG})")
    given = "override one value of the configuration, e.g. optimizer.params.momentum=0.9"
    add("--set", metavar="KEY=VALUE", action="append", dest="overrides", help=given)
    add("--lr", type=float, help="learning rate; the same as --set optimizer.params.lr=LR")
    add("--ranks", type=int, help="processes (default: 2; one per GPU at most)")
    add("--steps", type=int, help="optimizer steps (default: 100)")
    add("--batch", type=int, help="sequences per rank and micro-batch (default: 8)")
    add("--seq-len", type=int, help="tokens per sequence (default: 64)")
    add("--seed", type=int, help="of data order, masks, dropout and random weights (default: 0)")
    add("--save-every", type=int, metavar="N", help="steps between checkpoints (default: 20)")
    add("--keep-checkpoints", type=int, metavar="N", help="newest checkpoints to keep (default: 2)")
    add("--out", metavar="DIR", help="run folder (default: runs/<model>-<time>)")
    resume = "go on with the unfinished run in --out, or the newest one under runs/;"
    other = "--ranks N with it needs a checkpoint of N ranks (zeromuon ckpt reshard)"
    add("--resume", action="store_true", help=f"{resume} {other}")
    add("--verify", **flag, help="load the saved model again at the end and compare its logits bit for bit")
    trace = "write what every lane of every rank did in the third step, for ui.perfetto.dev"
    add("--trace", metavar="FILE", help=trace)
    add("--demo", **flag, help="a small pretrained encoder on the text of the Python reference, 40 steps")
    return parser


def finetune(arguments: list[str]) -> int:
    """`zeromuon finetune`; returns the exit status. Raises ValueError for bad input, before anything is written."""
    options = vars(finetune_parser().parse(arguments))
    out, wants_resume = options.pop("out"), options.pop("resume")
    given = settings_given(options)
    from .finetune import joined, launch, run_folder

    if joined.by_torchrun():
        return joined.run(given, out, wants_resume, new_settings)
    if wants_resume:
        return launch.resume(run_folder.unfinished_folder(out), given)
    settings = new_settings(given)
    return launch.start(run_folder.new_folder(out, settings.model_name), settings)


def settings_given(options: dict) -> dict:
    """The fields of Settings that the command line names, paths made absolute."""
    lr, overrides = options.pop("lr"), tuple(options.pop("overrides") or ())
    if lr is not None:
        overrides = (*overrides, f"optimizer.params.lr={lr!r}")
    given = {name: value for name, value in options.items() if value is not None}
    for name in ("model", "data", "config", "trace"):
        if name in given:
            given[name] = str(Path(given[name]).absolute())
    return {**given, "overrides": overrides} if overrides else given


def new_settings(given: dict):
    """Settings of a new run. Raises ValueError if model or data are not named."""
    from ..ranks import machine
    from .finetune.settings import Settings

    if given.get("demo"):
        given = demo_settings(given)
    for name in ("model", "data"):
        if name not in given:
            raise ValueError(f"zeromuon finetune: --{name} is missing; name it, or try --demo, which needs neither")
    defaults = {"ranks": min(2, machine.gpu_count() or 2)}
    if "config" not in given:
        defaults["config"] = str(config_file(DEFAULT_CONFIG, "--config"))
    return Settings(**{**defaults, **given})


def demo_settings(given: dict) -> dict:
    """`given` with the demo's values where it names none.

    On a CPU it computes in fp32, Newton-Schulz too, so that its figures repeat between machines with and without bf16. On one
    GPU its single rank takes the sequences of two, so that a step sees as many tokens.
    """
    from .finetune import data, model_folder
    from ..ranks import machine

    gpus = machine.gpu_count()
    chosen = {"data": data.DEMO_DATA, **DEMO, "batch": 16 if gpus == 1 else 8, **given}
    if "model" not in chosen:
        chosen["model"] = str(model_folder.demo_model().absolute())
    if not gpus:
        chosen["overrides"] = ("bf16.enabled=false", "optimizer.params.ns_dtype=float32", *chosen.get("overrides", ()))
    return chosen
