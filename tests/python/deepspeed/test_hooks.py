"""What is replaced in DeepSpeed: checked before, once, put back; here on owners that stand for DeepSpeed's."""

import functools
import gc
import types
import warnings
import weakref

import deepspeed
import pytest
from deepspeed.utils.nvtx import instrument_w_nvtx

from zeromuon.deepspeed import hooks
from zeromuon.deepspeed.hooks import replace_once, undo_all


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        undo_all()


class Zero3:
    def step(self, sub_group_id, norm=None):
        return ("step", sub_group_id, norm)

    @instrument_w_nvtx
    def release(self, sub_group_id):
        return ("release", sub_group_id)


STEP = ["self", "sub_group_id", "norm"]


def ours(original, *arguments, **keywords):
    return ("ours", *original(*arguments, **keywords))


def others(original, *arguments, **keywords):
    return ("others", *original(*arguments, **keywords))


def owners():
    """(owner, signature, how it is called) of each kind."""
    module = types.ModuleType("module")
    module.step = lambda sub_group_id, norm=None: ("step", sub_group_id, norm)
    one, cls = Zero3(), type("Class", (), dict(vars(Zero3)))
    return [
        pytest.param(module, STEP[1:], module, id="module"),
        pytest.param(cls, STEP, cls(), id="class"),
        pytest.param(one, STEP, one, id="object"),
    ]


@pytest.mark.parametrize("owner, signature, called", owners())
def test_a_replacement_gets_what_it_replaces_and_what_was_passed(owner, signature, called):
    replace_once(owner, "step", signature, ours)
    assert called.step(1, norm=2.0) == ("ours", "step", 1, 2.0)


@pytest.mark.parametrize("owner, signature, called", owners())
def test_a_second_call_does_nothing(owner, signature, called):
    replace_once(owner, "step", signature, ours)
    replace_once(owner, "step", signature, ours)
    assert called.step(1) == ("ours", "step", 1, None)


@pytest.mark.parametrize("owner, signature, called", owners())
def test_one_call_undoes_all(owner, signature, called):
    before, keys = vars(owner).get("step"), set(vars(owner))
    replace_once(owner, "step", signature, ours)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        undo_all()
    assert vars(owner).get("step") is before and set(vars(owner)) == keys
    assert called.step(1) == ("step", 1, None)
    replace_once(owner, "step", signature, ours)
    assert called.step(1) == ("ours", "step", 1, None), "and it can be replaced again"


@pytest.mark.parametrize("owner, signature, called", owners())
def test_what_somebody_else_wrapped_since_is_left_and_named_and_our_part_does_nothing(owner, signature, called):
    replace_once(owner, "step", signature, ours)
    wrapper = functools.partial(others, owner.step) if called is owner else functools.partialmethod(others, owner.step)
    if called is not owner:
        inner = owner.step
        wrapper = lambda self, *arguments, **keywords: others(inner, self, *arguments, **keywords)  # noqa: E731
    owner.step = wrapper
    name = {Zero3: "Zero3"}.get(type(owner)) or owner.__name__
    with pytest.warns(UserWarning, match=rf"left as they are.*{name}\.step"):
        undo_all()
    assert vars(owner)["step"] is wrapper
    assert called.step(1) == ("others", "step", 1, None)


def test_a_replacement_that_somebody_took_away_is_put_there_again():
    zero3 = Zero3()
    replace_once(zero3, "step", STEP, ours)
    del zero3.step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        replace_once(zero3, "step", STEP, ours)
        assert zero3.step(1) == ("ours", "step", 1, None)
        undo_all()


@pytest.mark.parametrize(
    "owner, name, signature, found",
    [
        (
            Zero3,
            "step",
            ["self", "sub_group_id"],
            r"Zero3\.step takes \['self', 'sub_group_id', 'norm'\], expected \['self',",
        ),
        (
            Zero3(),
            "release",
            ["self", "index"],
            r"Zero3\.release takes \['self', 'sub_group_id'\], expected \['self', 'index'\]",
        ),
        (Zero3(), "post_step", ["self"], "Zero3 has no post_step"),
        (types.ModuleType("module"), "set_flags", [], "module has no set_flags"),
    ],
)
def test_another_signature_is_refused_with_the_release_and_nothing_is_changed(owner, name, signature, found):
    before = dict(vars(owner))
    with pytest.raises(ValueError, match=rf"DeepSpeed {deepspeed.__version__}: {found}.*; use a supported release"):
        replace_once(owner, name, signature, ours)
    assert dict(vars(owner)) == before


def test_the_nvtx_wrapper_of_deepspeed_is_looked_through():
    assert hooks.without_wrapper(Zero3.release).__name__ == "release"
    assert hooks.without_wrapper(Zero3.step) is Zero3.step
    for owner in (Zero3(), type("Class", (), dict(vars(Zero3)))):
        replace_once(owner, "release", ["self", "sub_group_id"], ours)
        replace_once(owner, "release", ["self", "sub_group_id"], ours)
        assert (owner if isinstance(owner, Zero3) else owner()).release(3) == ("ours", "release", 3)


def test_of_an_object_the_method_of_its_class_is_checked_whatever_wraps_it():
    zero3 = Zero3()
    inner = zero3.step
    zero3.step = lambda *arguments, **keywords: others(inner, *arguments, **keywords)
    replace_once(zero3, "step", STEP, ours)
    assert zero3.step(1) == ("ours", "others", "step", 1, None)
    undo_all()
    assert zero3.step(1) == ("others", "step", 1, None)


def test_two_replacements_of_one_function_are_refused():
    zero3 = Zero3()
    replace_once(zero3, "step", STEP, ours)
    with pytest.raises(RuntimeError, match="Zero3.step is replaced already, by ours"):
        replace_once(zero3, "step", STEP, others)


def test_an_owner_is_not_kept_alive():
    zero3 = Zero3()
    replace_once(zero3, "step", STEP, ours)
    gone = weakref.ref(zero3)
    del zero3
    gc.collect()
    assert gone() is None and not list(hooks._hooks)
