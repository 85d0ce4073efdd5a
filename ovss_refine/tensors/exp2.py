"""The exponential for compiled loops, which LLVM vectorises where it cannot vectorise libm's."""

from typing import Any

import numpy as np
from numba import njit

f32 = np.float32
# 2^r on [-0.5, 0.5]: the polynomial of degree 5 with the least relative error, 7.5e-8.
C0, C1, C2 = f32(1.0000001), f32(0.69314694), f32(0.24022120)
C3, C4, C5 = f32(0.055507131), f32(0.0096755410), f32(0.0013276471)
# A float32 of this size has no fraction: adding it rounds, and leaves the whole number, plus the
# bias of an exponent, in the lowest bits.
ROUND = f32(1.5 * 2**23 + 127)


@njit(nogil=True, error_model="numpy", fastmath={"contract"}, forceinline=True)
def exp2(x: Any) -> Any:
    """Return 2^x of a float32 x <= 0, to 3e-7 of itself; below -126, 2^-126.

    Nothing may be reordered here: adding and then subtracting `ROUND` would be nothing.
    """
    if x < f32(-126):
        x = f32(-126)
    shifted = f32(x + ROUND)
    r = x - (shifted - ROUND)
    p = ((((C5 * r + C4) * r + C3) * r + C2) * r + C1) * r + C0
    return p * np.int32(shifted.view(np.int32) << 23).view(f32)
