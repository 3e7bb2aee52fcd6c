"""Every function of DeepSpeed that zeromuon replaces is replaced here, checked before, and put back from here.

An owner is a module, a class, or one object, of which then only that object's method is replaced. No owner is kept
alive. Thread: the one that builds and steps engines.
"""

from __future__ import annotations

import functools
import inspect
import types
import warnings
import weakref
from collections.abc import Callable

from .release import other_release

_ABSENT = object()


class _Hook:
    """A replacement in its place; held by what stands there. Once undone it only passes calls on."""

    def __init__(self, owner, name: str, replacement: Callable):
        self.owner, self.name, self.replacement = weakref.ref(owner), name, replacement
        self._before = vars(owner).get(name, _ABSENT)  # of the owner's own, and not of its class
        self._is_undone = False
        original = getattr(owner, name)

        @functools.wraps(original)
        def hook(*arguments, **keywords):
            if self._is_undone:
                return original(*arguments, **keywords)
            return replacement(original, *arguments, **keywords)

        self._hook = hook
        setattr(owner, name, hook)

    def is_of(self, owner, name: str) -> bool:
        return self.owner() is owner and self.name == name

    def is_there(self) -> bool:
        """False when it was taken away, or its owner is gone. What stands over it may be somebody else's."""
        owner = self.owner()
        return owner is not None and vars(owner).get(self.name, _ABSENT) is not self._before

    def undo(self) -> str | None:
        """Puts back what was there. Where somebody else has put something over it since, that stays; its name, if so."""
        self._is_undone = True
        if not self.is_there():
            return None
        owner = self.owner()
        if vars(owner).get(self.name) is not self._hook:
            return f"{_name_of(owner)}.{self.name}"
        if self._before is _ABSENT:
            delattr(owner, self.name)
        else:
            setattr(owner, self.name, self._before)
        return None


_hooks: weakref.WeakSet[_Hook] = weakref.WeakSet()


def replace_once(owner, name: str, signature: list[str], replacement: Callable) -> None:
    """Replaces the function `name` of DeepSpeed's `owner`. Does nothing where that was done and not undone.

    signature: the names of the function's parameters, `self` among them. replacement: is called with what it replaces
    (bound, where the owner is one object) and then with what DeepSpeed passes.

    Raises ValueError when this DeepSpeed has no such function, or one with other parameters; nothing is changed then.
    """
    check_signature(owner, name, signature)
    for there in [hook for hook in _hooks if hook.is_of(owner, name)]:
        if not there.is_there():
            _hooks.discard(there)
        elif _function(there.replacement) is _function(replacement):
            return
        else:
            raise RuntimeError(f"{_name_of(owner)}.{name} is replaced already, by {there.replacement.__qualname__}")
    _hooks.add(_Hook(owner, name, replacement))


def undo_all() -> None:
    """Puts back all that was replaced in this process. What somebody else has put over it since is left as it is, with a
    warning that names it; our part of that does nothing any more."""
    left = sorted(filter(None, [hook.undo() for hook in list(_hooks)]))
    _hooks.clear()
    if left:
        warnings.warn(
            f"left as they are, because something else was put there after zeromuon: {', '.join(left)}; zeromuon's part "
            f"of them does nothing any more",
            stacklevel=3,
        )


def check_signature(owner, name: str, signature: list[str]) -> None:
    """Raises ValueError when the function `name` of DeepSpeed's `owner` is absent or takes other parameters than those
    named. Of an object its class is looked at, whose methods call each other whatever stands before them."""
    holder = owner if isinstance(owner, (type, types.ModuleType)) else type(owner)
    function = getattr(holder, name, None)
    if function is None:
        raise other_release(f"{_name_of(owner)} has no {name}, which zeromuon replaces")
    taken = list(inspect.signature(without_wrapper(inspect.unwrap(function))).parameters)
    if taken != signature:
        raise other_release(f"{_name_of(owner)}.{name} takes {taken}, expected {signature}")


def without_wrapper(function: Callable) -> Callable:
    """What DeepSpeed's instrument_w_nvtx wraps: its wrapper takes any arguments and names nothing."""
    if not getattr(function, "__qualname__", "").startswith("instrument_w_nvtx."):
        return function
    return inspect.getclosurevars(function).nonlocals.get("func", function)


def _function(replacement: Callable) -> Callable:
    return getattr(replacement, "__func__", replacement)


def _name_of(owner) -> str:
    return owner.__name__ if isinstance(owner, (type, types.ModuleType)) else type(owner).__name__
