"""Loops and sizes that `torch.export` can trace: its sizes are symbols, its values unknown.

Everything else in the refinement is traced as it is.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

State = tuple[Tensor, ...]


def exporting() -> bool:
    """Whether `torch.export` is tracing. A torch that cannot tell (2.6) is not supported there."""
    return hasattr(torch.compiler, "is_exporting") and bool(torch.compiler.is_exporting())


def whole_number(x: Tensor, most: int | None = None) -> int:
    """Return the number in `x`, at least 1, or a symbol of it that may be a size.

    Args:
        x: [] whole number.
        most: what it cannot exceed, where that is known.
    """
    if not exporting():
        return int(x)
    n = cast(int, x.item())
    torch._check(n >= 1)
    if most is not None:
        torch._check(n <= most)
    return n


def repeat(
    step: Callable[..., State],
    settled: Callable[[State, State], Tensor],
    state: State,
    steps: range,
    every: int,
) -> tuple[State, int, bool]:
    """Take the `steps`, and no more once nothing changes.

    Args:
        step: from (t, *state) to the next state, t one of `steps`. Changes no tensor of `state`.
        settled: from the states before and after a step to whether that is the end, [] bool.
        state: the first state. Only the first step may change a shape.
        steps: which steps.
        every: steps between two checks of `settled`; 0: never check, take them all.

    Returns:
        The last state; the number of the last step; whether it was settled. A traced loop does not
        know the last two: 0 and False.
    """
    if exporting():
        if every:
            return _loop(step, settled, state, steps), 0, False
        for t in steps:
            state = step(t, *state)
        return state, 0, False
    t, done = steps.start - 1, False
    for t in steps:
        after = step(t, *state)
        check = t % every == 0 or t == steps[-1] if every else t == steps[-1]
        done = check and bool(settled(state, after))
        state = after
        if done:
            break
    return state, t, done


def _loop(
    step: Callable[..., State],
    settled: Callable[[State, State], Tensor],
    state: State,
    steps: range,
) -> State:
    """Do the same as one node of a graph, which checks `settled` after every step."""
    from torch._higher_order_ops.while_loop import while_loop

    if not steps:
        return state

    # The number of kept classes is a symbol without a value. torch does not track it through the
    # sizes and strides of what a loop carries: tensors travel flat and regain their shape inside.
    def going(t: Tensor, moving: Tensor, *state: Tensor) -> Tensor:
        return moving & (t < steps.stop)

    def body(t: Tensor, moving: Tensor, *state: Tensor) -> State:
        before = tuple(x.view_as(like) for x in state)
        after = step(t, *before)
        flat = (x.flatten().view_as(y) for x, y in zip(after, state, strict=True))
        return t + 1, ~settled(before, after), *flat

    after = step(steps.start, *state)
    like = after[0]
    t = torch.full((), steps.start + 1, dtype=torch.int64, device=like.device)
    start = (t, ~settled(state, after), *(x.flatten().clone() for x in after))
    result: State = while_loop(going, body, start)  # type: ignore[no-untyped-call]  # torch gives it no types
    return tuple(x.view_as(like) for x in result[2:])
