"""Joint bilateral upsampling by a compiled loop, for float32 on a CPU, where numba is installed.

The loop releases the GIL, and Python's own threads, started for each call, run it: numba's thread
pools do not survive a fork, or must not be entered by two threads at once. Without numba,
`upsample.py` does the same in torch.

Axes: as in `upsample.py`.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ovss_refine.config import RefineConfig
from ovss_refine.tensors.cells import axis, neighbour_index, spatial_axes
from ovss_refine.tensors.compiled import load_loops

LOOP = "ovss_refine.method.upsample_loop"
# Means held at a time; pixels that are worth a thread.
BAND, GRAIN = 1 << 24, 1 << 14


def can_compile(low: Tensor, guide: Tensor) -> bool:
    """Whether the compiled loop is there, and can upsample these tensors."""
    for t in (low, guide):
        if type(t) is not Tensor or t.dtype != torch.float32 or t.device.type != "cpu":
            return False
        if t.requires_grad and torch.is_grad_enabled():
            return False
    return not torch.compiler.is_compiling() and load_loops(LOOP) is not None


@dataclass(frozen=True, slots=True, eq=False)
class CompiledBand:
    """Some rows of cells to upsample.

    Attributes:
        rows: the pixel rows [start, stop) that the band covers.
        size: B, K, W.
        inputs: what `upsample_cells` takes from `image` to `Px`.
    """

    rows: slice
    size: tuple[int, int, int]
    inputs: tuple[Any, ...]

    def labels(self) -> Tensor:
        """Return the index of the largest map at every pixel, [B, rows, W] int64."""
        return self._fill(True)[:, 0].long()

    def means(self) -> Tensor:
        """Return the upsampled maps, [B, K, rows, W] float32."""
        return self._fill(False)

    def _fill(self, argmax: bool) -> Tensor:
        B, K, W = self.size
        rows = self.rows.stop - self.rows.start
        out = np.empty((B, 1 if argmax else K, rows, W), np.float32)
        n, gw, _ = self.inputs[5].shape
        cells, loop = B * n * gw, cast(Any, load_loops(LOOP)).upsample_cells
        threads = max(1, min(torch.get_num_threads(), cells, B * rows * W // GRAIN))
        cuts = pairwise(cells * i // threads for i in range(threads + 1))
        calls = [(*cut, *self.inputs, K, argmax, out) for cut in cuts]
        if threads == 1:
            loop(*calls[0])
        else:
            with ThreadPoolExecutor(threads) as pool:
                for done in [pool.submit(loop, *call) for call in calls]:
                    done.result()
        return torch.from_numpy(out)


def compiled_bands(
    low: Tensor, guide: Tensor, spread: RefineConfig, divisor: int = 1
) -> Iterator[CompiledBand]:
    """Do what `upsample_bands` does; see there. A band's means are all that it holds."""
    loop = cast(Any, load_loops(LOOP))
    B, K, gh, gw = low.shape
    H, W = guide.shape[2:]
    y = axis(H, gh, spread.sigma_spatial, spread.radius, low.device)
    x = axis(W, gw, spread.sigma_spatial, spread.radius, low.device)
    image = guide * (2 * math.log(2) * spread.sigma_range**2) ** -0.5
    colours = F.adaptive_avg_pool2d(image, (gh, gw)).flatten(2).mT.contiguous()  # [B, gh * gw, 3]
    values = torch.cat([low, torch.ones_like(low[:, :1])], dim=1).flatten(2).mT
    values = F.pad(values.contiguous(), (0, -(K + 1) % loop.TAKE_K))  # [B, gh * gw, >= K + 1]
    y_edges, x_edges = np.array(y.edges), np.array(x.edges)
    step = max(1, BAND // divisor // (B * K * W * y.pixels.shape[1]))
    for top in range(0, gh, step):
        cells = slice(top, min(top + step, gh))
        rows = slice(y.edges[cells.start], y.edges[cells.stop])
        if rows.start == rows.stop:  # fewer pixels than cells: nobody is nearest to these
            continue
        near = neighbour_index(y, x, cells)  # [n, gw, S]
        S = near.shape[2]
        near = near[:, :, torch.arange(-(-S // loop.TAKE_S) * loop.TAKE_S, device="cpu") % S]
        arrays = [image, colours, values, near, *spatial_axes(y, x, cells)]
        image_, *rest = (t.contiguous().numpy() for t in arrays)
        edges = y_edges[top : cells.stop + 1], x_edges
        yield CompiledBand(rows, (B, K, W), (image_, *edges, *rest, x.pixels.shape[1]))
