"""What `demo` does: refine the built-in photographs, draw them before and after.

Axes: M classes, (H, W) pixels.
"""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image

from ovss_refine.cli.refine import DemoRequest
from ovss_refine.cli.refine_files import describe
from ovss_refine.config import RefineConfig
from ovss_refine.examples import RefineInputs, example_labels, list_examples, read_example
from ovss_refine.folders.files import write_whole
from ovss_refine.folders.results import prepare_folder
from ovss_refine.images import draw
from ovss_refine.images.draw import LabelMap
from ovss_refine.images.read import RGB

# They stand out from these photographs and from each other.
COLOURS = np.array([(0, 110, 255), (255, 205, 0), (225, 0, 60)], np.uint8)
CAPTIONS = ("photograph", "before: bilinear", "after: refined")
PANEL = (264, 230)  # greatest width and height of an image on the sheet, 808 pixels wide


def run_demo(request: DemoRequest) -> None:
    """Refine the built-in photographs; write a before-and-after image of each, and one of all.

    Raises:
        FileExistsError: if a result exists and `overwrite` is not set.
    """
    targets = {stem: request.out / f"{stem}_before_after.png" for stem in list_examples()}
    sheet = request.out / "before_after.png"
    prepare_folder(request.out, [*targets.values(), sheet], overwrite=request.overwrite)
    rows = []
    for stem, target in targets.items():
        inputs, names = read_example(stem), example_labels(stem).names
        before = unrefined(inputs)
        start = time.perf_counter()
        after = inputs.refine(RefineConfig()).labels.numpy()
        seconds = time.perf_counter() - start

        write_whole(target, partial(draw.write_png, image=row(inputs.image, before, after, names)))
        rows.append(row(shrink(inputs.image), shrink(before), shrink(after), names))
        H, W = before.shape
        print(f"{stem}: {W} x {H} pixels, {len(names)} classes")
        print(f"  before  {describe(before, names)}")
        print(f"  after   {describe(after, names)}")
        print(f"  {np.mean(before != after):.1%} of the pixels changed, in {seconds:.2f} s")
        print(f"  {target}")
    write_whole(sheet, partial(draw.write_png, image=np.concatenate(rows)))
    print(f"all: {sheet}")


def unrefined(inputs: RefineInputs) -> LabelMap:
    """Upsample the logits bilinearly; return the class of the best prompt of every pixel [H, W]."""
    size = inputs.image.shape[:2]
    best = F.interpolate(inputs.logits[None].float(), size, mode="bilinear")[0].argmax(dim=0)
    labels = best if inputs.prompt_index is None else inputs.prompt_index[best]
    return labels.numpy()


def row(image: RGB, before: LabelMap, after: LabelMap, names: Sequence[str]) -> RGB:
    """Draw an image, two label maps over it, and a legend of all classes below."""
    panels = [image, *(draw.overlay(image, labels, COLOURS) for labels in (before, after))]
    W = image.shape[1]
    around = ((0, 0), (0, max(0, PANEL[0] - W)), (0, 0))
    panels = [np.pad(panel, around, constant_values=255) for panel in panels]
    return draw.with_legend(draw.side_by_side(panels, CAPTIONS), range(len(names)), names, COLOURS)


def shrink(values: NDArray[Any]) -> NDArray[Any]:
    """Fit an image [H, W, 3] or a label map [H, W] into `PANEL`."""
    H, W = values.shape[:2]
    zoom = min(PANEL[0] / W, PANEL[1] / H)
    size = (round(W * zoom), round(H * zoom))
    if values.ndim == 3:
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.LANCZOS))
    small = Image.fromarray(values.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(small).astype(np.int64)
