"""What `torch.export` needs done in another way: its sizes are symbols and its values unknown.

All the rest of the refinement is traced as it stands.
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
) -> State:
    """Take the `steps`, and no more once nothing moves.

    Args:
        step: from (t, *state) to the next state, t one of `steps`. Changes no tensor of `state`.
        settled: from the states before and after a step to whether that is the end, [] bool.
        state: the first state. Only the first step may change a shape.
        steps: which steps.
        every: steps between two looks at `settled`; 0: never look, take them all.
    """
    if every and exporting():
        return _loop(step, settled, state, steps)
    for t in steps:
        after = step(t, *state)
        done = every and t % every == 0 and bool(settled(state, after))
        state = after
        if done:
            break
    return state


def _loop(
    step: Callable[..., State],
    settled: Callable[[State, State], Tensor],
    state: State,
    steps: range,
) -> State:
    """Do the same as one node of a graph, which looks at `settled` after every step."""
    from torch._higher_order_ops.while_loop import while_loop

    if not steps:
        return state

    # The number of kept classes is a symbol without a value. torch does not follow it through the
    # sizes and strides of what a loop carries, so that travels flat and is told its shape inside.
    def going(t: Tensor, moving: Tensor, *state: Tensor) -> Tensor:
        return moving & (t < steps.stop)

    def body(t: Tensor, moving: Tensor, *state: Tensor) -> State:
        before = tuple(x.view_as(like) for x in state)
        after = step(t, *before)
        flat = (x.flatten().view_as(y) for x, y in zip(after, state, strict=True))
        return t + 1, ~settled(before, after), *flat

    after = step(steps.start, *state)
    like = after[0]
    t = torch.full((), steps.start + 1, device=like.device)
    start = (t, ~settled(state, after), *(x.flatten().clone() for x in after))
    result: State = while_loop(going, body, start)  # type: ignore[no-untyped-call]  # torch gives it no types
    return tuple(x.view_as(like) for x in result[2:])
