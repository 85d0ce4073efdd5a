"""What the axes of logits and the tokens of attention are: grids, and orders that are no one's.

Axes: B images, K prompts, (h, w) grid of the logits, (gh, gw) grid of the attention, N patches.
"""

import math
import operator
from collections.abc import Sequence

# Tokens that a transformer has beside its patches: one for the class, four registers or so.
MOST_EXTRA_TOKENS, USUAL_EXTRA = 8, (0, 1, 5)
NAMED_GRID = "`Attention(attn, grid=(gh, gw))`, or add `grid` = [gh, gw] to an .npz file"
# The shortest grid of a model, a ViT-B/32's. Shorter ones are made by hand and taken at their word.
SHORTEST_SIDE = 7
# Logarithm of how far the aspect of a grid may be from its image's, which models squash: 4 to 5.
MOST_SQUASHED = 0.223


def check_grid(grid: Sequence[int], N: int) -> tuple[int, int]:
    """Return `grid` as (gh, gw) with gh * gw = N, or raise TypeError or ValueError."""
    try:
        sides = tuple(map(operator.index, grid))
    except TypeError:
        raise TypeError(f"`grid` must be (gh, gw), whole numbers; got {grid!r}.") from None
    if len(sides) != 2 or min(sides) < 1 or math.prod(sides) != N:
        raise ValueError(
            f"`grid` must be (gh, gw) with gh * gw = N={N}, one patch per token; got {sides}."
        )
    return sides


def find_grid(N: int, logits_size: tuple[int, int], image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the grid of a bare attention tensor, by the rule of the method's section 0.

    Args:
        N: number of tokens.
        logits_size: (h, w) of the logits, the grid of first choice.
        image_size: (H, W) of the image. A square is the second choice, if a grid of N patches in
            the shape of the logits or of the image is square to within a patch; if the logits'
            alone, which may be squashed, no grid in the image's shape may fit as well.

    Raises:
        ValueError: if neither will do; names the tokens to drop where a few are left over.
    """
    h, w = logits_size
    extra, side = N - h * w, math.isqrt(N)
    if extra == 0:
        return logits_size
    if 1 <= extra <= MOST_EXTRA_TOKENS:
        raise ValueError(
            f"`attn` must be over the h * w = {h * w} patches of the logits alone; got N={N}, like "
            f"a map with {extra} class or register tokens in front. Drop them and divide: "
            f"`attn = attn[..., {extra}:, {extra}:]; attn = attn / attn.sum(-1, keepdim=True)`. If "
            f"all are patches, pass {NAMED_GRID}."
        )
    aspect = image_size[0] / image_size[1]
    if side * side == N and (
        _is_square(side, aspect) or (_is_square(side, h / w) and not _may_have_aspect(N, aspect))
    ):
        return side, side
    raise ValueError(
        f"`attn` must have N = h * w = {h * w} tokens (the logits' grid), or a square number for a "
        f"square image or square logits; got N={N}. Pass {NAMED_GRID}."
    )


def check_axes(
    name: str,
    shape: Sequence[int],
    image: Sequence[int],
    N: int,
    grid: tuple[int, int] | None,
    counted: int = 0,
) -> None:
    """Raise ValueError if logits of this `shape` fit only with their axes in another order.

    Sizes that agree with the number of prompts, with the tokens of a bare map, with the attention's
    grid, with the image's aspect or in a square are right. Where only the aspect speaks against
    them, who counts the prompts has them taken.

    Args:
        name: of the logits, for messages.
        shape: [B, K, h, w] or [K, h, w] as it should be.
        image: [B, 3, H, W] or [3, H, W], of the images as they were given.
        N: number of the attention's tokens.
        grid: the attention's own grid, if it has one.
        counted: number of prompts, by their index or names; 0: nobody has said.
    """
    if 0 in (*shape, *image) or not 2 <= len(shape) <= 4:
        return
    (K, h, w), (B, _, H, W) = (1, *shape)[-3:], (1, *image)[-4:]
    by_tokens = grid is None and math.isqrt(N) ** 2 != N  # only the logits' grid can have N patches
    if by_tokens and K > 1 and K * h == N != h * w:
        raise ValueError(prompts_last(name, shape, f"{K} x {h} are the N={N} tokens of `attn`"))
    if h == w or (h, w) == grid or _has_aspect(h, w, H / W):
        return
    if (len(shape) > 2 and counted == K != w) or (by_tokens and h * w == N != K * h):
        return
    far = abs(math.log(h * W / (w * H))) > MOST_SQUASHED
    known, row_by_row = N in (h, w), len(shape) == 2 or (len(shape) == 3 and K == B and far)
    long = max(h, w) >= SHORTEST_SIDE**2
    if h * w != N and ((known and (long or grid is None)) or (row_by_row and long)):
        tokens_first = h == N or (w != N and h > w)
        alone = len(shape) == len(image) == 3 and K == 1  # an image without batch axis
        one, lead = (f"{name}[0]", "") if alone else (name, "".join(f"{n}, " for n in shape[:-2]))
        gh, gw = grid or ("gh", "gw")
        raise ValueError(
            f"`{name}` must have shape [B, K, h, w] or [K, h, w]; got {list(shape)}, like patches "
            f"in a row. Pass `{one}{'.mT' * tokens_first}.reshape({lead}"
            f"{w if tokens_first else h}, {gh}, {gw})`."
        )
    fits = grid is None and K * h == N != h * w  # which would be refused in any other order
    if min(K, h) >= SHORTEST_SIDE:
        # A last axis of 1 would be a single prompt, which needs no segmentation.
        fits = fits or (K, h) == grid or (w > 1 and (h == K or _has_aspect(K, h, H / W)))
    if fits and (far or ((K, h) == grid and _has_aspect(K, h, H / W))):
        why = f"as a grid, {h} x {w} is not in the image's aspect and {K} x {h} fits"
        raise ValueError(f"{prompts_last(name, shape, why)} Or say `prompt_index=range({K})`.")


def prompts_last(name: str, shape: Sequence[int], why: str) -> str:
    """Say that the last axis of logits is that of the prompts."""
    axes = "2, 0, 1" if len(shape) == 3 else "0, 3, 1, 2"
    return (
        f"`{name}` must have shape [B, K, h, w] or [K, h, w]; got {list(shape)}, like prompts in "
        f"the last axis: {why}. Pass `{name}.permute({axes})`, of an array "
        f"`{name}.transpose({axes})`."
    )


def _is_square(side: int, aspect: float) -> bool:
    """Whether a grid of side**2 patches in the `aspect` h / w has h and w less than one apart.

    With h = w + 2, one more token makes the patches a square number.
    """
    most = 1 if side >= SHORTEST_SIDE else 2
    return side * abs(math.sqrt(aspect) - 1 / math.sqrt(aspect)) < most


def _may_have_aspect(N: int, aspect: float) -> bool:
    """Whether N tokens may be a grid in the `aspect` h / w, alone or with those that ViTs have."""
    counts = [N - extra for extra in USUAL_EXTRA]
    return any(n % h == 0 and _has_aspect(h, n // h, aspect) for n in counts for h in range(1, N))


def _has_aspect(h: int, w: int, aspect: float) -> bool:
    """Whether h x w has the `aspect` h / w to within a patch."""
    return abs(h - w * aspect) < 1 or abs(w - h / aspect) < 1
