"""Which matrices a parameter holds: how a stack of experts or a fused projection is cut before Newton-Schulz. No torch."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from ..base.words import nearest

_KEYS = ("sizes", "heads", "per_head", "stack", "transposed")


@dataclass(frozen=True)
class Split:
    """How the matrices of a parameter lie in it.

    stack: so many of one shape one after the other, along the first dimension; 0: it is no stack.
    transposed: each is stored (inputs, outputs).
    sizes: outputs of the parts that each is cut into, in order; none: it is not cut.
    heads: how often these sizes follow each other along the outputs.
    per_head: the parts of every head are matrices of their own; else what a part has in all heads is one.
    """

    stack: int = 0
    transposed: bool = False
    sizes: tuple[int, ...] = ()
    heads: int = 1
    per_head: bool = False

    @property
    def matrices(self) -> int:
        """Of the stack, before each is cut."""
        return max(1, self.stack)

    @property
    def is_whole(self) -> bool:
        """Whether the parameter is one matrix."""
        return self.matrices == 1 and len(self.sizes) * (self.heads if self.per_head else 1) <= 1

    def blocks(self, rows: int, cols: int) -> list[tuple[int, int, int, int, int, int]]:
        """The matrices in the (rows, cols) view of the parameter as stored, none where it is one: row_begin, row_end,
        col_begin, col_end, count and period, as the plan takes them."""
        each = rows // self.matrices
        if self.is_whole:
            return []
        if self.transposed:
            spans = [(begin, end) for begin, end, _, _ in self._outputs(cols)]
            return [(e * each, (e + 1) * each, *span, 1, 0) for e in range(self.matrices) for span in spans]
        spans = self._outputs(each)
        return [(e * each + b, e * each + end, 0, cols, *more) for e in range(self.matrices) for b, end, *more in spans]

    def _outputs(self, outputs: int) -> list[tuple[int, int, int, int]]:
        """begin, end, count and period of each part of one matrix."""
        sizes, period = self.sizes or (outputs,), sum(self.sizes)
        parts, begin = [], 0
        for size in sizes:
            parts.append((begin, begin + size))
            begin += size
        if self.per_head:
            return [(h * period + b, h * period + end, 1, 0) for h in range(self.heads) for b, end in parts]
        return [(b, end, self.heads, period if self.heads > 1 else 0) for b, end in parts]

    def text(self, rows: int, cols: int) -> str:
        """The matrices, by their shapes as stored: 128 x (768x2048) x 2. Empty where the parameter is one."""
        if self.is_whole:
            return ""
        one = Split(0, self.transposed, self.sizes, self.heads, self.per_head)
        each = rows // self.matrices
        shapes = Counter(
            ((end - begin) * count, right - left)
            for begin, end, left, right, count, _ in one.blocks(each, cols) or [(0, each, 0, cols, 1, 0)]
        )
        parts = " + ".join(f"({r}x{c})" + (f" x {count}" if count > 1 else "") for (r, c), count in shapes.items())
        if self.matrices == 1:
            return parts
        return f"{self.stack} x [{parts}]" if len(shapes) > 1 else f"{self.stack} x {parts}"

    def as_json(self) -> dict:
        """As :func:`read_split` takes it."""
        given = {"stack": self.stack, "transposed": self.transposed, "sizes": list(self.sizes), "heads": self.heads}
        given["per_head"] = self.per_head
        default = Split()
        return {
            k: v for k, v in given.items() if v != getattr(default, k) and v != [] or k == "transposed" and self.stack
        }


def read_split(given, shape: tuple[int, ...], transposed: bool | None, where: str) -> Split:
    """What a user says of a parameter's matrices.

    given: False: it is one matrix; sizes of parts along the outputs; or a dict with any of sizes, heads, per_head, stack
    (True: of a 3-D parameter, its first dimension; or how many matrices) and transposed.
    shape: of the parameter, at least 2-D. transposed: how its module stores it; None where the module does not say.

    Raises ValueError, which begins with `where`, for anything that does not fit the shape.
    """
    if given is False:
        given = {}
    if isinstance(given, (list, tuple)):
        given = {"sizes": given}
    if not isinstance(given, dict):
        raise ValueError(f"{where}: got {given!r}, expected false, a list of sizes, or a dict of {', '.join(_KEYS)}")
    for key in given:
        if key not in _KEYS:
            near = nearest(str(key), _KEYS)
            hint = f"did you mean {near!r}?" if near else f"the keys are {', '.join(_KEYS)}"
            raise ValueError(f"{where}: unknown key {key!r}, {hint}")
    stack = _stack_of(given.get("stack", False), shape, transposed, where)
    stored = given.get("transposed", transposed)
    if stored is None:
        raise ValueError(
            f'{where}: a stack of shape {shape} does not say how its matrices are stored; give "transposed": false for '
            f"(outputs, inputs), true for (inputs, outputs)"
        )
    sizes, heads = tuple(given.get("sizes", ())), given.get("heads", 1)
    if not all(_is_count(n) for n in (*sizes, heads)):
        raise ValueError(f"{where}: got sizes {list(sizes)!r} and heads {heads!r}, expected whole numbers from 1 on")
    if not all(isinstance(flag, bool) for flag in (stored, given.get("per_head", False))):
        raise ValueError(f"{where}: transposed and per_head: expected true or false, got {given!r}")
    split = Split(stack, stored, sizes, heads, given.get("per_head", False))
    return checked(split, shape, where)


def checked(split: Split, shape: tuple[int, ...], where: str) -> Split:
    """`split`, with the sizes of its heads filled in. Raises ValueError when it does not fit the shape."""
    rows, cols = view_of(shape, split.stack)
    outputs = cols if split.transposed else rows // split.matrices
    if split.heads > 1 and not split.sizes:
        if outputs % split.heads:
            raise ValueError(f"{where}: {split.heads} heads do not divide the {outputs} outputs of shape {shape}")
        split = Split(split.stack, split.transposed, (outputs // split.heads,), split.heads, split.per_head)
    covered = split.heads * sum(split.sizes)
    if split.sizes and covered != outputs:
        of_heads = f" of {split.heads} heads" if split.heads > 1 else ""
        raise ValueError(
            f"{where}: the sizes {list(split.sizes)}{of_heads} add up to {covered}, expected {outputs}, the outputs of each "
            f"matrix of shape {shape}"
        )
    if split.transposed and split.heads > 1 and not split.per_head and len(split.sizes) > 1:
        raise ValueError(
            f"{where}: parts that alternate between columns of shape {shape} are no block that can be gathered; leave the "
            f'sizes out, or say "per_head": true'
        )
    return split


def view_of(shape: tuple[int, ...], stack: int) -> tuple[int, int]:
    """(rows, cols) of the 2-D view of a parameter that holds so many matrices."""
    if stack and len(shape) == 3:
        return shape[0] * shape[1], math.prod(shape[2:])
    return shape[0], math.prod(shape[1:])


def _stack_of(given, shape: tuple[int, ...], transposed: bool | None, where: str) -> int:
    if given is True:
        given = shape[0] if len(shape) == 3 else 0
    if given is False:
        if len(shape) == 3 and transposed is None:
            raise ValueError(
                f'{where}: shape {shape} is a stack of matrices; say {{"stack": true, "transposed": false}} where each is '
                f'(outputs, inputs), "transposed": true where each is (inputs, outputs)'
            )
        return 0
    if not _is_count(given) or (shape[0] != given if len(shape) == 3 else len(shape) != 2 or shape[0] % given):
        raise ValueError(
            f"{where}: stack: got {given!r}, expected true for a 3-D parameter, or a number of matrices that divides the first "
            f"dimension of shape {shape}"
        )
    return given


def _is_count(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
