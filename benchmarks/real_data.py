"""The effect of refinement on a real segmenter's logits, for large and for small objects.

    python benchmarks/real_data.py [--data DIR ...] [--limit N] [--json OUT]

A folder has one of two layouts:

* VOC: VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation/val.txt}, 21 classes;
* plain: images/<id>.jpg, masks/<id>.png, names.txt (one class per line);

and arrays/<id>.npz with `logits` and `logits_weak` [K, h, w] and `features` [C, h, w]. Masks
hold class indices, 255 = unlabelled. Prints Markdown tables; `--json` saves the results.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from machine import machine
from ovss_refine import Attention, Refiner, joint_bilateral_upsample
from ovss_refine.attention import affinity
from ovss_refine.folders.arrays import read_arrays
from ovss_refine.images.read import read_image

SHARED = Path(__file__).parents[2] / "shared" / "data"
IGNORE = 255
# The classes with enough images in the small VOC set, see its README.
VOC_FREQUENT = (0, 8, 10, 12, 13, 15, 17)
Labeller = Callable[[Tensor, Attention, Tensor], Tensor]


@dataclass(frozen=True)
class Folder:
    """The files of a data set, and the temperature of its affinity."""

    name: str
    ids: tuple[str, ...]
    image: str
    mask: str
    arrays: str
    temperature: float
    frequent: tuple[int, ...]

    def samples(self) -> Iterator[tuple[Tensor, Tensor, dict[str, Tensor]]]:
        """Yield image [3, H, W] uint8, mask [H, W] int64 and arrays, image by image."""
        for stem in self.ids:
            image = torch.from_numpy(read_image(Path(self.image.format(stem))).copy())
            mask = torch.from_numpy(np.asarray(Image.open(self.mask.format(stem))).astype(np.int64))
            keys = (["logits"], ["logits_weak"], ["features"])
            arrays = read_arrays(Path(self.arrays.format(stem)), *keys)
            yield (
                image.permute(2, 0, 1),
                mask,
                {k: torch.from_numpy(v).float() for k, v in arrays.items()},
            )


def open_folder(root: Path, limit: int | None) -> Folder:
    """Recognise the layout of a folder."""
    if (root / "VOC2012").is_dir():
        voc = root / "VOC2012"
        ids = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
        image, mask = f"{voc}/JPEGImages/{{}}.jpg", f"{voc}/SegmentationClass/{{}}.png"
        temperature, frequent = 0.05, VOC_FREQUENT
    elif (root / "images").is_dir():
        ids = sorted(path.stem for path in (root / "images").iterdir())
        image, mask = f"{root}/images/{{}}.jpg", f"{root}/masks/{{}}.png"
        temperature, frequent = 0.1, ()
    else:
        raise SystemExit(f"`{root}` must have a folder VOC2012 or images; see --help.")
    arrays = f"{root}/arrays/{{}}.npz"
    return Folder(root.name, tuple(ids[:limit]), image, mask, arrays, temperature, frequent)


def rows() -> dict[str, Labeller]:
    """Return all compared ways from logits to labels, by name."""
    modes: dict[str, dict[str, object]] = {
        "kl": {"mode": "kl"},
        "optimal path": {"mode": "optimal_path"},
        "maximum velocity": {"mode": "maximum_velocity"},
        "maximum velocity, increment": {"mode": "maximum_velocity", "criterion": "increment"},
        "fusion": {"mode": "fusion"},
    }
    controls: dict[str, dict[str, object]] = {
        "propagation, k = 1": {"mode": "propagation", "propagation_steps": 1},
        "propagation, k = 3": {"mode": "propagation", "propagation_steps": 3},
        "anchored, k = 3": {"mode": "anchored", "propagation_steps": 3},
    }
    # A control is repeated only for options that affect it.
    variants: list[tuple[str, dict[str, object], dict[str, dict[str, object]]]] = [
        ("", {}, modes | controls),
        ("; nms absolute", {"nms": "absolute"}, modes),
        (
            "; pre_propagation 1",
            {"pre_propagation": 1},
            modes | {"anchored, k = 3": controls["anchored, k = 3"]},
        ),
        ("; min_area 0.02", {"min_area": 0.02}, modes | controls),
    ]
    table: dict[str, Labeller] = {"bilinear": bilinear, "upsampling alone": upsampling_alone}
    for suffix, options, members in variants:
        for name, mode in members.items():
            table[name + suffix] = refined(Refiner(**(mode | options)))  # type: ignore[arg-type]
    return table


def bilinear(logits: Tensor, attention: Attention, image: Tensor) -> Tensor:
    """Label with the segmenter alone: upsample the logits and take the largest."""
    size = image.shape[1:]
    return F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0].argmax(0)


def upsampling_alone(logits: Tensor, attention: Attention, image: Tensor) -> Tensor:
    """Label with the segmenter's probabilities, upsampled along the image's edges."""
    return joint_bilateral_upsample(logits.softmax(0)[None], image[None])[0].argmax(0)


def refined(refiner: Refiner) -> Labeller:
    """Label with a refinement."""
    return lambda logits, attention, image: refiner(logits, attention, image).labels


def confusion(mask: Tensor, labels: Tensor, K: int) -> Tensor:
    """Count [K, K] pixels by true and predicted class, except the ignored ones."""
    known = mask != IGNORE
    return torch.bincount(mask[known] * K + labels[known], minlength=K * K).view(K, K)


def measure(folder: Folder, table: dict[str, Labeller]) -> dict[str, dict[str, dict[str, float]]]:
    """Run every row on every image, for both kinds of logits."""
    results = {}
    for strength, key in (("strong", "logits"), ("weak", "logits_weak")):
        counts = dict.fromkeys(table, torch.zeros((), dtype=torch.int64))
        seconds: dict[str, list[float]] = {name: [] for name in table}
        samples = tqdm(folder.samples(), f"{folder.name}, {strength}", total=len(folder.ids))
        for image, mask, arrays in samples:
            attention = affinity(arrays["features"], folder.temperature)
            for name, label in table.items():
                start = time.perf_counter()
                labels = label(arrays[key], attention, image)
                seconds[name].append(time.perf_counter() - start)
                counts[name] = counts[name] + confusion(mask, labels, len(arrays[key]))
        results[strength] = {
            name: scores(counts[name], folder.frequent)
            | {"seconds_per_image": float(np.median(seconds[name]))}
            for name in table
        }
    return results


def scores(counts: Tensor, frequent: tuple[int, ...]) -> dict[str, float]:
    """Mean IoU over the classes that occur, and pixel accuracy, in percent."""
    hits = counts.diag().double()
    iou = hits / (counts.sum(0) + counts.sum(1) - hits)  # NaN if in neither truth nor labels
    out = {"miou": 100 * float(iou.nanmean())}
    if frequent:
        out["miou_frequent"] = 100 * float(iou[list(frequent)].nanmean())
    return out | {"accuracy": 100 * float(hits.sum() / counts.sum())}


def markdown(folder: Folder, results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Format the results of one folder as a table."""
    columns = [
        (f"{label}, {strength}", strength, key, form)
        for strength in results
        for key, label, form in (
            ("miou_frequent", "mIoU frequent", "{:.1f}"),
            ("miou", "mIoU all", "{:.1f}"),
            ("accuracy", "accuracy", "{:.1f}"),
            ("seconds_per_image", "s/image", "{:.3f}"),
        )
        if key in results[strength]["bilinear"]
    ]
    cells = [[f"{folder.name}, {len(folder.ids)} images", *(c[0] for c in columns)]]
    cells.append(["---"] * len(cells[0]))
    for name in results["strong"]:
        cells.append([name, *(form.format(results[s][name][key]) for _, s, key, form in columns)])
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def main() -> None:
    """Measure the folders and print one table each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, nargs="+", help="folders in either layout")
    parser.add_argument("--limit", type=int, help="use only the first N images")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    roots = args.data or [SHARED / "voc_real", SHARED / "camvid_real"]
    report: dict[str, object] = {"machine": machine()}
    for root in roots:
        folder = open_folder(root, args.limit)
        results = measure(folder, rows())
        report[folder.name] = {"images": len(folder.ids), **results}
        print("\n" + markdown(folder, results) + "\n")
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
