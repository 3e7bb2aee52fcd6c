"""ZeroMuon: Muon for hidden matrices and AdamW for the rest, under DeepSpeed ZeRO-3."""

from __future__ import annotations

import dataclasses

import torch

from .. import _core
from ..base.warn import warn
from ..deepspeed import layout
from ..deepspeed.fused_step import FusedStep
from ..deepspeed.guard import watch_for
from ..deepspeed.layout import Request, unexpected_shards
from ..deepspeed.watch import waits_in, warn_of_coarse_accumulation, watch_engine
from ..qk_clip.clip import QkClip
from ..selection.rules import ParamSpec
from . import limits, trace
from .bind import Binding, bind
from .groups import check_keys, params_and_specs
from .options import (
    check_together,
    check_value,
    declares_options,
    group_option_names,
    group_values,
    options_given,
    plain_number,
    validate_options,
)
from .state import (
    ENTRY,
    adopt_universal,
    earlier_factors,
    load_entry,
    save_entry,
    settle_groups,
    settle_states,
    with_placeholders,
)
from .tasks import make_task


@declares_options
class ZeroMuon(torch.optim.Optimizer):
    """Muon (K. Jordan et al., 2024) with an AdamW fallback (arXiv 1711.05101), sharded by ZeRO-3.

    Hidden matrices take ``W <- W*(1 - lr*weight_decay) - lr*s*NS(U)``, where U is the (nesterov)
    momentum of the averaged, unscaled and clipped gradient, NS the Newton-Schulz iteration and s the
    scale. All other parameters take AdamW with ``adam_lr``.

    ``param_groups`` has one group for each given group and role, Muon first. What stands there is what the next step
    takes, on every rank the same: ``lr`` and ``weight_decay``; ``momentum`` and ``nesterov`` of Muon; ``betas`` and
    ``eps`` of AdamW. A given group may have its own of each; its AdamW parameters then start with
    its ``lr`` times ``adam_lr / lr``. The same factor is between the groups where a scheduler of the
    DeepSpeed config spreads one number over all of them (:attr:`lr_factors`).

    Args:
        params: the groups of :func:`zeromuon.param_groups`, or groups whose parameters carry a
            boolean ``use_muon`` attribute. A bare list of parameters carries no roles and is refused.
        {options}

    It binds itself when the first step begins; :func:`zeromuon.attach` binds earlier.

    Raises:
        ValueError: an option is unknown or out of range, a parameter has no role, or this build cannot work on this
            rank's GPU.
    """

    def __init__(self, params, *positional, **keywords):
        self._options = validate_options(options_given(positional, keywords))
        layout.check_build()
        self._specs: dict[int, ParamSpec] = {}
        self._params: list = []
        self._given_group: list[int] = []  # of each group after the split, which one it comes from
        self._group_roles: list[str] = []  # of each group after the split
        self._binding: Binding | None = None
        self._requests: list[Request] = []  # within a fused step: what it is made of
        self._earlier_factors: list[float] | None = None  # from a load to settle_scheduler()
        self._qk_clip: QkClip | None = None
        self._skipped_steps = 0
        self._in_skip_streak = False
        groups = self._split_by_role(params)
        opts = self._options
        ratio = 1.0 if opts["adam_lr"] is None else opts["adam_lr"] / opts["lr"]
        self._lr_factors = [1.0 if role == "muon" else ratio for role in self._group_roles]
        self._told_lr = [group["lr"] for group in groups]
        for group, factor in zip(groups, self._lr_factors):
            group["lr"] *= factor
        self._decoupled_decay = True
        # No betas here: DeepSpeed's OneCycle would cycle those of every group, Muon's too.
        super().__init__(groups, {"lr": opts["lr"], "weight_decay": opts["weight_decay"]})
        watch_for(self)

    # ---- construction ------------------------------------------------------------------------

    def _split_by_role(self, params) -> list[dict]:
        """One homogeneous group per given group and role; records a spec for every parameter."""
        groups = list(params)
        if not groups or not isinstance(groups[0], dict):
            raise ValueError(
                "ZeroMuon needs to know which parameters are hidden matrices, and a bare list of "
                "parameters does not say; pass zeromuon.param_groups(model)"
            )
        split = []
        for index, group in enumerate(groups):
            check_keys(group, index)
            rest = {k: v for k, v in group.items() if k not in ("params", "specs", "role", *group_option_names())}
            by_role: dict[str, list] = {}
            for param, spec in zip(*params_and_specs(group)):
                if "weight_decay" in group:
                    spec = dataclasses.replace(spec, decay=True)
                self._specs[id(param)] = spec
                self._params.append(param)
                by_role.setdefault(spec.role, []).append(param)
            roles = [role for role in ("muon", "adamw") if role in by_role]
            for role in roles:
                values = group_values(role, {**self._options, **group})
                values = {name: check_value(name, value) for name, value in values.items()}
                split.append({**rest, **values, "params": by_role[role]})
            self._given_group += [index] * len(roles)
            self._group_roles += roles
        if not any(spec.role == "muon" for spec in self._specs.values()):
            raise ValueError(
                f"none of the {len(self._specs)} parameters is eligible for Muon; use AdamW, or name "
                f"matrices with param_groups(model, include=[...])"
            )
        return split

    # ---- binding -----------------------------------------------------------------------------

    def watch_attention(self, model) -> None:
        """Called with the model of the engine that steps it, before any forward. Raises ValueError where qk_clip cannot do
        what it is told to for this model."""
        if self._options["log_max_attention_logit"] or self._options["qk_clip"]:
            self._qk_clip = QkClip(model, self._options)

    def bind(self, with_states: bool = True) -> Binding:
        """Plans the step and allocates its buffers now, unless that is done. All ranks must call it at the same point.

        with_states: also allocates the states, so that too little memory is an error on all ranks.
        Raises ValueError or MemoryError, on every rank when on one.
        """
        if self._binding is None:
            there = set(self.state)
            try:
                allocate = self._state_of if with_states else None
                self._binding = bind(self, self._specs, self._params, self._agreed_options(), allocate)
            except Exception:
                for flat in set(self.state) - there:
                    del self.state[flat]
                raise
            if self._qk_clip is not None:
                self._qk_clip.bind(self._binding.zero3, self._binding.sub_groups)
            watch_engine(self, self._binding.zero3)
            warn_of_coarse_accumulation(self._binding.zero3)
            if self._binding.fused:
                FusedStep(self, self._binding.zero3, self._binding.sub_groups).install()
        return self._binding

    def release(self) -> None:
        """Ends its threads and gives back its buffers: its engine was destroyed. States stay as they are."""
        self._binding = None

    def _agreed_options(self) -> dict:
        """The options, and what else must be equal on all ranks."""
        per_group = {f"values of group {index}": self._values_of(index) for index in range(len(self.param_groups))}
        return {
            **self._options,
            **per_group,
            "adam_lr/lr per group": self._lr_factors,
            "decoupled decay": self._decoupled_decay,
        }

    def follow_deepspeed(self, given_groups_with_own_lr: list[int], decoupled_decay: bool) -> None:
        """DeepSpeed's meaning of ``"type": "Muon"``: in these groups (numbered as given at construction) AdamW takes
        the group's lr as it is; `decoupled_decay` False is Adam with L2 regularisation (``adam_w_mode`` false). Raises
        ValueError for an option that excludes that."""
        check_together({**self._options, "adam_w_mode": decoupled_decay})
        for index, given in enumerate(self._given_group):
            if given in given_groups_with_own_lr:
                self._lr_factors[index] = 1.0
                self.param_groups[index]["lr"] = self._told_lr[index]
        self._decoupled_decay = decoupled_decay

    @property
    def lr_factors(self) -> list[float]:
        """Of each parameter group: its learning rate where Muon's is 1, for a scheduler that knows one number."""
        return list(self._lr_factors)

    @property
    def group_roles(self) -> list[str]:
        """Of each parameter group: "muon" or "adamw"."""
        return list(self._group_roles)

    def stage_timeout_s(self, group) -> float:
        """Seconds that a rank of this process group waits for the others before it says so."""
        return limits.stage_timeout_s(self._options["stage_timeout_s"], group, layout.compute_device())[0]

    @property
    def is_bound(self) -> bool:
        return self._binding is not None

    def holds_any_of(self, ids: set[int]) -> bool:
        """Whether a parameter with one of these ``id()`` was given at construction."""
        return not ids.isdisjoint(self._specs)

    @property
    def plan(self):
        """The step plan: ``print(opt.plan)`` is a table, ``opt.plan.hash`` what ranks compare.

        Raises ValueError before the first step, unless :func:`zeromuon.attach` was called.
        """
        return self._bound().plan

    @property
    def process_group(self):
        """Of the ranks that share the shards. Raises ValueError before the first step, as :attr:`plan`."""
        return layout.process_group(self._bound().zero3)

    def _bound(self) -> Binding:
        # Binding needs all ranks, so what one rank may ask alone does not bind by itself.
        if self._binding is None:
            raise ValueError("this ZeroMuon is not bound yet; call zeromuon.attach(engine) on all ranks first")
        return self._binding

    # ---- stepping ----------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure=None):
        """Steps the one flat shard that is in ``param_groups`` now; DeepSpeed calls once for each, in order. In a fused
        step: all shards that were recorded (:meth:`step_requests`).

        Raises:
            ValueError: not under ZeRO-3, or the shard is not the next of those that were bound. Nothing is changed
                when this was the first shard of a step; else the optimizer is poisoned.
            zeromuon.StepError: a value was not finite or a stage failed, on any rank. The optimizer is poisoned then:
                every later step and save raises it again, until a checkpoint with its optimizer states is loaded.
        """
        if closure is not None:
            raise ValueError("ZeroMuon.step takes no closure under DeepSpeed")
        self.bind()
        try:
            self._adopt_universal()
            self.raise_if_poisoned("not stepped")
            self._step_sub_groups(self._requests or [self._given_shard()])
        except BaseException as error:
            # An interrupt is raised after the step that it came in, before its counts are written.
            half_way = self._binding.executor.next_sub_group > 0
            if half_way or isinstance(error, _core.StepError) or not isinstance(error, Exception):
                self.poison(error)
            self._empty_groups()
            raise

    def step_requests(self, requests: list[Request]) -> None:
        """One call of step() for all of these, in the order of the sub-groups: torch's schedulers and hooks see it."""
        self._requests = requests
        try:
            self.step()
        finally:
            self._requests = []

    def poison(self, error: BaseException) -> None:
        """What `error` ended half way: no step and no save until a checkpoint with optimizer states is loaded."""
        self._binding.executor.poison(str(error) or f"{type(error).__name__} in the middle of a step")

    def _given_shard(self) -> Request:
        """The one flat shard that DeepSpeed put into a group, its gradient unscaled and clipped."""
        given = [flat for group in self.param_groups for flat in group["params"]]
        expected = self._next_sub_group()
        if len(given) != 1 or given[0] is not expected.flat:
            raise unexpected_shards(given, expected)
        return Request(expected)

    def _next_sub_group(self) -> layout.SubGroup:
        return self._binding.sub_groups[self._binding.executor.next_sub_group]

    def _step_sub_groups(self, requests: list[Request]) -> None:
        """requests: in the order of the sub-groups."""
        if requests[0].sub_group is not self._next_sub_group():
            raise unexpected_shards([r.sub_group.flat for r in requests], self._next_sub_group())
        states = [self._state_of(self._binding, r.sub_group) for r in requests]
        counts = [int(state["step"]) + 1 for state in states]
        values = {index: self._values_of(index) for index in {r.sub_group.group for r in requests}}
        tasks = [
            make_task(r, state, self._options, values[r.sub_group.group], count, self._decoupled_decay)
            for r, state, count in zip(requests, states, counts)
        ]
        with waits_in(self._binding.zero3, "the step of ZeroMuon") as who_is_missing:
            if self._qk_clip is not None and self._binding.executor.next_sub_group == 0:
                self._qk_clip.begin(self.process_group)
            try:
                self._binding.executor.step(tasks)
            except _core.StepError as error:
                missing = who_is_missing()
                raise _core.StepError(f"{error}; {missing}" if missing else str(error)) from None
        if self._qk_clip is not None:
            try:
                self._qk_clip.apply(requests)
            except BaseException as error:  # the weights of some heads are not the new ones
                self.poison(error)
                raise
        # The counts are written back last: a step that raises has not happened.
        for state, count in zip(states, counts):
            state["step"] = count
        if self._binding.executor.next_sub_group == 0:
            self._in_skip_streak = False

    def _values_of(self, index: int) -> dict:
        """What stands in a parameter group for its next step. Raises ValueError for a value out of range."""
        group = self.param_groups[index]
        where = f"param_groups[{index}]"
        values = group_values(self._group_roles[index], {**self._options, **group})
        return {name: check_value(name, plain_number(value), where) for name, value in values.items()}

    def _empty_groups(self) -> None:
        """As DeepSpeed leaves them between calls. It does not after an exception, and would step twice what is left."""
        for group in self.param_groups:
            group["params"] = []

    def raise_if_poisoned(self, what: str) -> None:
        """Raises zeromuon.StepError with the failure that poisoned it."""
        if cause := self._binding.executor.poisoned:
            raise _core.StepError(f"{what}: the optimizer is poisoned by an earlier failure: {cause}")

    def _state_of(self, binding: Binding, sub_group: layout.SubGroup) -> dict:
        flat = sub_group.flat
        state = self.state[flat]
        if "exp_avg" not in state:
            state["step"] = 0
            muon = sub_group.role == "muon"
            state["exp_avg"] = binding.new_momentum(flat) if muon else torch.zeros_like(flat, requires_grad=False)
        if sub_group.role == "adamw" and "exp_avg_sq" not in state:
            state["exp_avg_sq"] = torch.zeros_like(flat, requires_grad=False)
        return state

    # ---- state -------------------------------------------------------------------------------

    def state_dict(self) -> dict:
        """As torch's, with a ``zeromuon`` entry (roles, hyper-parameters) and, in Muon sub-groups, an
        ``exp_avg_sq`` of zeros that takes no memory: DeepSpeed's converters expect one."""
        try:
            self._bound()
            self._adopt_universal()
            self.raise_if_poisoned("not saved")
        except Exception:
            self._empty_groups()
            raise
        if not any(group["params"] for group in self.param_groups):
            raise ValueError("DeepSpeed has the shards between steps; call engine.optimizer.state_dict()")
        out = with_placeholders(super().state_dict(), self._binding.sub_groups, self.param_groups)
        return save_entry(out, self._binding, self._options)

    def load_state_dict(self, state_dict: dict) -> None:
        """Each group takes the values that were saved with it, as in torch; all else stays as configured, and a
        difference is a warning.

        Raises ValueError when another optimizer wrote it or the roles differ; changes nothing then.
        """
        try:
            self._bound()
            stripped = load_entry(state_dict, self._binding, self._options, len(self.param_groups))
            super().load_state_dict(stripped)
        except Exception:
            self._empty_groups()
            raise
        settle_groups(self.param_groups, self._group_roles, state_dict[ENTRY], self._options)
        settle_states(self.state, self._binding)
        self._earlier_factors = earlier_factors(state_dict[ENTRY], self._group_roles)
        self._binding.executor.recover()

    def _adopt_universal(self) -> None:
        entry = adopt_universal(self.state, self.param_groups, self._group_roles, self._binding, self._options)
        if entry is not None:
            self._earlier_factors = earlier_factors(entry, self._group_roles)
            self._binding.executor.recover()

    def settle_scheduler(self, scheduler) -> None:
        """After DeepSpeed has loaded a checkpoint and `scheduler` with it: one of torch carries the rates that the groups
        began with, and an earlier zeromuon's groups of AdamW began with Muon's."""
        self._adopt_universal()
        factors, self._earlier_factors = self._earlier_factors, None
        if factors is None:
            return
        warn(
            "the checkpoint is of an earlier zeromuon, whose parameter groups of AdamW have Muon's learning rate; the groups, "
            "and the scheduler that was loaded with it, are converted. A scheduler whose state you load yourself is not: "
            f"multiply its base_lrs by {factors}"
        )
        for name in ("base_lrs", "_last_lr"):
            saved = getattr(scheduler, name, None)
            if isinstance(saved, list) and len(saved) == len(factors):
                setattr(scheduler, name, [rate * factor for rate, factor in zip(saved, factors)])

    # ---- counters ----------------------------------------------------------------------------

    def count_skipped_step(self) -> bool:
        """Counts a step that DeepSpeed skipped. Returns whether it is the first since a step that was taken."""
        self._skipped_steps += 1
        if self._qk_clip is not None:
            self._qk_clip.reset()
        first, self._in_skip_streak = not self._in_skip_streak, True
        return first

    def counters(self) -> dict:
        """Totals of this rank since it was bound; zeros before.

        steps, skipped_steps; seconds: busy per stage, whose sum exceeds wall_seconds of all step calls by what ran at
        the same time; bytes_sent to other ranks, bytes_self: matrices, and per step and rank some 500 bytes of how it
        went; collectives; newton_schulz_matrices.
        """
        of_core = self._binding.executor.counters() if self._binding else _core.no_counts()
        collectives = of_core["collectives"] + (self._qk_clip.collectives if self._qk_clip else 0)
        return {**of_core, "collectives": collectives, "skipped_steps": self._skipped_steps}

    @property
    def watches_attention(self) -> bool:
        """Whether :meth:`attention_logits` has something to say."""
        return self._qk_clip is not None

    def attention_logits(self) -> dict:
        """Of the last step, the same on all ranks: largest_logit of any head (None before the first), clipped_heads, and
        heads, how many there are. Raises ValueError without qk_clip and log_max_attention_logit."""
        if self._qk_clip is None:
            raise ValueError("attention logits are not watched; set qk_clip or log_max_attention_logit")
        return dict(self._qk_clip.seen)

    def record_trace(self, on: bool = True) -> None:
        """Starts to note when each lane of this rank does what, or stops. Raises ValueError before the first step, unless
        :func:`zeromuon.attach` was called."""
        self._bound().executor.record_trace(on)

    def take_trace(self) -> list[dict]:
        """What was noted since the last call: dicts of lane, stage, sub_group, bucket, begin_ns, end_ns (steady clock).

        Raises ValueError when the optimizer is not bound, so that nothing can have been: call :meth:`record_trace` first.
        """
        return self._bound().executor.take_trace()

    def write_trace(self, path) -> None:
        """Rank 0 writes what all ranks noted since the last call to `path`, which ui.perfetto.dev opens. All ranks must
        call it. Raises OSError, on rank 0, when it cannot be written."""
        with waits_in(self._bound().zero3, "write_trace()"):
            traces = trace.gather(self.take_trace(), self.process_group)
        if traces is not None:
            trace.write_trace(path, traces)

    def state_bytes(self) -> dict:
        """Bytes of the state tensors on this rank, and what AdamW's two fp32 states would take.

        Raises ValueError before the first step, unless :func:`zeromuon.attach` was called.
        """
        sub_groups = self._bound().sub_groups
        resident = sum(
            value.numel() * value.element_size()
            for g in sub_groups
            for value in self.state.get(g.flat, {}).values()
            if torch.is_tensor(value)
        )
        return {"resident": resident, "adamw": sum(8 * g.flat.numel() for g in sub_groups)}
