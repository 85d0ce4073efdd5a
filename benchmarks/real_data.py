"""What refinement adds to real logits with real attention, mode by mode, cell by cell.

    python benchmarks/real_data.py [--data DIR ...] [--attention NAME ...] [--logits NAME ...]
        [--rows NAME ...] [--model DIR] [--limit N] [--part all|even|odd] [--upsampler NAME]
        [--json OUT]

A cell is a data set, the logits and the attention. Every figure is a difference in mIoU to
upsampling the classes' confidence along the image's edges, without attention, with a 95 % interval
of a paired bootstrap over the images. The layouts of the data: VOC (VOC2012/), plain (images/,
masks/, names.txt) and COCO-Object (coco_object/); with arrays/<id>.npz of `logits`, `logits_weak`
[K, h, w] and `features` [C, h, w] but for COCO. `--model` has a ViT (config.json, weights) and
text_map.npz, an open-vocabulary head on its features. See the README beside the data.

Attention: `last` (the ViT's last layer), `keys` (its k-k attention), `affinity` (of its features,
0.1), `own` (of the features in the arrays, the segmenter's). Logits: `strong`, `weak`, `weak0.4`
(multiplied by 0.4), `head` (the open-vocabulary head's), `probe` (a linear probe on the ViT's
features, fitted on the other half of the images).

Rows besides the modes: `lposs`, `lposs, probabilities` (of the softmax over prompts; the published
input are cosines) and, on request, `lposs+`, which takes seconds for each image and kind of logits.
They are label propagation (V. Stojnić et al., CVPR 2025) with the published options, along the
cosines of the ViT's features or, in cells of `own`, of those in the arrays, and with an upsampling
of their own. Their seconds include everything. `--upsampler pixels` puts the second step of LPOSS+,
propagation over pixels, in the place of ours: seconds for each image, too.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from machine import machine
from ovss_refine import Attention, RefineConfig
from ovss_refine.attention import affinity
from ovss_refine.baseline.lposs import Lposs
from ovss_refine.baseline.lposs_pixels import propagation_upsample
from ovss_refine.config import PAPER
from ovss_refine.evaluation.dataset import load_dataset
from ovss_refine.folders.arrays import read_arrays
from ovss_refine.images.read import read_image
from ovss_refine.method.markov import doubly_stochastic
from ovss_refine.method.steps import Confidence, Scored, score_classes, weigh_logits
from ovss_refine.tensors.cells import resize
from ovss_refine.upsamplers.bands import bands
from ovss_refine.upsamplers.names import BUILT_IN
from ovss_refine_adapters.backbones.capture import mix_attention
from ovss_refine_adapters.backbones.timm import TimmBackbone

SHARED = Path(__file__).parents[2] / "shared" / "data"
IGNORE = 255
# The classes with enough images in the small VOC set, see its README.
VOC_FREQUENT = (0, 8, 10, 12, 13, 15, 17)
HEAD_SCALE = 30.0
SIDE = 518  # the ViT's own size
ATTENTION = ("last", "affinity", "own", "keys")
LOGITS = ("strong", "weak", "weak0.4", "head", "probe")
ROWS = {
    "default": RefineConfig(),
    "default without the vote": RefineConfig(vote=0.0),
    "default, optimal path": RefineConfig(mode="optimal_path"),
    "paper, maximum velocity": RefineConfig(**PAPER),
    "paper, optimal path": RefineConfig(mode="optimal_path", **PAPER),
    "paper, fusion": RefineConfig(mode="fusion", **PAPER),
    "paper, KL": RefineConfig(mode="kl", **PAPER),
    "propagation, k = 3": RefineConfig(mode="propagation"),
    "anchored, k = 3": RefineConfig(mode="anchored"),
}
# Each with whether it is given probabilities in the place of logits.
RIVALS = {
    "lposs": (Lposs(), False),
    "lposs, probabilities": (Lposs(), True),
    "lposs+": (Lposs(pixels=True), False),
}
BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Sample:
    """An image [3, H, W] in [0, 1], its mask [H, W], and arrays as float32, where it has any."""

    stem: str
    image: Tensor
    mask: Tensor
    arrays: dict[str, Tensor]


@dataclass(frozen=True)
class Folder:
    """The files of a data set, how its own features make attention, and what is averaged."""

    name: str
    ids: tuple[str, ...]
    image: str
    mask: str
    arrays: str
    M: int
    temperature: float
    means: dict[str, tuple[int, ...]]

    def read(self, stem: str) -> Sample:
        """Read the files of one image."""
        image = torch.from_numpy(read_image(Path(self.image.format(stem))).copy())
        mask = torch.from_numpy(np.asarray(Image.open(self.mask.format(stem))).astype(np.int64))
        arrays = {}
        if self.arrays:
            keys = (["logits"], ["logits_weak"], ["features"])
            found = read_arrays(Path(self.arrays.format(stem)), *keys)
            arrays = {name: torch.from_numpy(x).float() for name, x in found.items()}
        return Sample(stem, image.permute(2, 0, 1).float() / 255, mask, arrays)


def open_folder(root: Path, limit: int | None, part: str) -> Folder:
    """Recognise the layout of a folder."""
    if (root / "VOC2012").is_dir():
        voc = root / "VOC2012"
        ids = (voc / "ImageSets/Segmentation/val.txt").read_text().split()
        paths = (f"{voc}/JPEGImages/{{}}.jpg", f"{voc}/SegmentationClass/{{}}.png")
        M, temperature = 21, 0.05
        means = {"VOC frequent": VOC_FREQUENT, "VOC all": tuple(range(21))}
    elif (root / "images").is_dir():
        ids = sorted(path.stem for path in (root / "images").iterdir())
        paths = (f"{root}/images/{{}}.jpg", f"{root}/masks/{{}}.png")
        M = len((root / "names.txt").read_text().splitlines())
        temperature, means = 0.1, {"CamVid": tuple(range(M))}
    elif (root / "coco_object").is_dir():
        coco = root / "coco_object"
        ids = sorted(path.stem for path in (coco / "images/val2017").iterdir())
        masks = f"{coco}/annotations/val2017/{{}}_instanceTrainIds.png"
        paths, M, temperature = (f"{coco}/images/val2017/{{}}.jpg", masks), 81, 0.1
        means = {"COCO-Object": tuple(range(81))}
    else:
        raise SystemExit(f"`{root}` must have VOC2012, images or coco_object; see --help.")
    arrays = f"{root}/arrays/{{}}.npz" if (root / "arrays").is_dir() else ""
    ids = ids[{"all": 0, "even": 0, "odd": 1}[part] :: 1 if part == "all" else 2][:limit]
    return Folder(root.name, tuple(ids), *paths, arrays, M, temperature, means)


class ViT:
    """The vision transformer: attention, features, and the head's cosines."""

    def __init__(self, folder: Path, name: str) -> None:
        """Load the weights and the head for the classes of a data set."""
        self.backbone = TimmBackbone(folder, size=(SIDE, SIDE))
        head = {
            k: torch.from_numpy(v)
            for k, v in np.load(folder / "text_map.npz").items()
            if v.dtype.kind != "U"
        }
        head["names"] = np.load(folder / "text_map.npz")["coco_names"]
        street = name == "camvid_real"
        text = head["street_text" if street else "coco_text"].float() - head["text_mean"]
        self.text, self.map = F.normalize(text, dim=-1), head["W"]
        self.mean, self.std = head["mean"], head["std"]
        index = head["camvid_index" if street else "voc_index"]
        if name == "coco_real":  # of whose names some are things, and all others the background
            things = list(load_dataset("coco-object").labels().names)
            names = (things.index(x) if x in things else 0 for x in head["names"])
            index = torch.tensor(list(names))
        self.index = index

    def __call__(self, image: Tensor) -> dict[str, Any]:
        """Return features [C, gh, gw] and the attention maps of one image."""
        images = image[None]
        features, last = self.backbone.features_and_projections(images)
        grid, prefix = self.backbone.grid(images), self.backbone.prefix
        options: dict[str, Any] = {"prefix": prefix, "factors": False, "device": image.device}
        return {
            "features": features[0],
            "last": mix_attention([(last.q, last.k, last.scale)], [1.0], grid, **options),
            "keys": mix_attention([(last.k, last.k, last.scale)], [1.0], grid, **options),
            "affinity": affinity(features, 0.1),
        }

    def cosines(self, features: Tensor) -> Tensor:
        """Return the similarity of every patch to every prompt, [K, gh, gw]."""
        x = F.normalize((features.flatten(1).T - self.mean) / self.std, dim=-1)
        return (F.normalize(x @ self.map, dim=-1) @ self.text.T).T.view(-1, *features.shape[1:])


def fit_probe(folder: Folder, vit: ViT) -> dict[str, Tensor]:
    """Fit two linear probes, each on one half of the images, and apply each to the other half."""
    inputs, targets, weights = [], [], []
    for stem in tqdm(folder.ids, f"{folder.name}, probe"):
        sample = folder.read(stem)
        features = vit.backbone.features(sample.image[None])[0]
        gh, gw = features.shape[1:]
        known = sample.mask.where(sample.mask != IGNORE, folder.M)
        shares = F.one_hot(known, folder.M + 1).permute(2, 0, 1).float()
        shares = F.adaptive_avg_pool2d(shares, (gh, gw)).flatten(1)  # [M + 1, N]
        inputs.append(features.flatten(1).T)
        targets.append(shares[:-1].argmax(dim=0))
        weights.append((shares[-1] < 0.5).float())
    x, y, w = torch.stack(inputs), torch.stack(targets), torch.stack(weights)
    x = (x - x.mean(dim=(0, 1))) / x.std(dim=(0, 1))
    out = {}
    for half in (0, 1):
        given, truth, weight = (t[half::2].flatten(0, 1) for t in (x, y, w))
        probe = _fit(given, truth, weight, folder.M)
        for n in range(1 - half, len(x), 2):
            out[folder.ids[n]] = probe(x[n]).detach().T.view(-1, gh, gw)
    return out


def _fit(x: Tensor, y: Tensor, weight: Tensor, M: int) -> torch.nn.Linear:
    """Fit multinomial logistic regression."""
    probe = torch.nn.Linear(x.shape[1], M)
    torch.nn.init.zeros_(probe.weight)
    solver: Any = torch.optim.LBFGS(probe.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        each = F.cross_entropy(probe(x), y, reduction="none")
        total = (each * weight).sum() / weight.sum() + 1e-3 * probe.weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return total

    solver.step(loss)
    return probe


def logits_of(
    sample: Sample, names: Sequence[str], seen: dict[str, Any], vit: ViT, probe: dict[str, Tensor]
) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the logits [1, K, h, w] of each kind, scaled for a softmax, and their classes."""
    found: dict[str, tuple[Tensor, Tensor | None]] = {}
    if sample.arrays:
        found["strong"] = (sample.arrays["logits"], None)
        found["weak"] = (sample.arrays["logits_weak"], None)
        found["weak0.4"] = (0.4 * sample.arrays["logits_weak"], None)
    found["head"] = (HEAD_SCALE * vit.cosines(seen["features"]), vit.index)
    if probe:
        found["probe"] = (probe[sample.stem], None)
    return {name: (x[None], index) for name, (x, index) in found.items() if name in names}


def upsample_labels(
    maps: Sequence[tuple[Tensor, Tensor]], image: Tensor, upsampler: str
) -> list[Tensor]:
    """Upsample many maps at once: pairs of scores [m, gh, gw] and their classes [m] to labels."""
    low = torch.cat([x for x, _ in maps])[None]
    chosen = propagation_upsample if upsampler == "pixels" else upsampler
    found = bands(low, image[None], RefineConfig(upsampler=chosen, keep_scores=True))
    pixels = torch.cat([band.means()[0] for band in found], dim=1)  # [all m, H, W]
    parts = torch.split(pixels, [len(x) for x, _ in maps])
    return [classes[x.argmax(dim=0)] for x, (_, classes) in zip(parts, maps, strict=True)]


def measure_image(
    folder: Folder, sample: Sample, vit: ViT, probe: dict[str, Tensor], args: argparse.Namespace
) -> Iterator[tuple[str, str, str, Tensor, float]]:
    """Yield attention ("-": none), logits, row, confusion [M, M] and the seconds of a row."""
    seen = vit(sample.image)
    if sample.arrays:
        seen["own"] = affinity(sample.arrays["features"], folder.temperature)
    given = logits_of(sample, args.logits, seen, vit, probe)
    every = torch.arange(folder.M)
    modes = [row for row in args.rows if row in ROWS]
    rivals = {
        own: rival_labels(sample, given, features, args.rows)
        for own, features in ((False, seen["features"]), (True, sample.arrays.get("features")))
        if features is not None and any((kind == "own") == own for kind in args.attention)
    }
    for name, (x, index) in given.items():
        P = _weigh(x, index, tuple(x.shape[2:]), folder.M, RefineConfig()).P
        low = P[0].view(-1, *x.shape[2:])
        (labels,) = upsample_labels([(low, every)], sample.image, args.upsampler)
        yield "-", name, "upsampling alone", confusion(sample.mask, labels, folder.M), 0.0
        up = F.interpolate(x, sample.mask.shape, mode="bilinear")
        labels = up.argmax(1)[0] if index is None else index[up.argmax(1)[0]]
        yield "-", name, "bilinear", confusion(sample.mask, labels, folder.M), 0.0
    for kind in args.attention:
        if kind not in seen:
            continue
        attention = seen[kind].batched()
        chain = doubly_stochastic(attention, RefineConfig().ipf_rounds, many_steps=True)
        keys, maps, seconds = [], [], []
        for name, (x, index) in given.items():
            for row in modes:
                weighed = _weigh(x, index, attention.grid, folder.M, ROWS[row])
                start = time.perf_counter()
                scored = score_classes(weighed, attention, chain, ROWS[row])
                seconds.append(time.perf_counter() - start)
                keys.append((name, row))
                maps.append(_maps(scored, attention))
        labelled = upsample_labels(maps, sample.image, args.upsampler) if maps else []
        for (name, row), labels, spent in zip(keys, labelled, seconds, strict=True):
            yield kind, name, row, confusion(sample.mask, labels, folder.M), spent
        for name, row, labels, spent in rivals[kind == "own"]:
            yield kind, name, row, confusion(sample.mask, labels, folder.M), spent


def rival_labels(
    sample: Sample,
    given: dict[str, tuple[Tensor, Tensor | None]],
    features: Tensor,
    rows: Sequence[str],
) -> list[tuple[str, str, Tensor, float]]:
    """Return logits, row, labels [H, W] and seconds of the rivals, which have no attention."""
    found = []
    for name, (x, index) in given.items():
        for row in (row for row in rows if row in RIVALS):
            start = time.perf_counter()
            rival, probabilities = RIVALS[row]
            values = x[0].softmax(dim=0) if probabilities else x[0]
            result = rival(values, features, sample.image, prompt_index=index)
            found.append((name, row, result.labels, time.perf_counter() - start))
    return found


def _maps(scored: Scored, attention: Attention) -> tuple[Tensor, Tensor]:
    return scored.D[0].view(-1, *attention.grid), scored.classes[0]


def _weigh(
    x: Tensor, index: Tensor | None, grid: tuple[int, ...], M: int, config: RefineConfig
) -> Confidence:
    """Return what `weigh_logits` does, on a grid, with the classes that have no prompt."""
    values = x if tuple(x.shape[2:]) == grid else resize(x, *grid)
    P, assigned, votes = weigh_logits(values.flatten(2), index, config)
    pad = (0, 0, 0, M - P.shape[1])  # they have no confidence, so that nobody asks for their votes
    return Confidence(F.pad(P, pad), assigned, None if votes is None else F.pad(votes, pad))


def confusion(mask: Tensor, labels: Tensor, M: int) -> Tensor:
    """Count [M, M] pixels by true and predicted class, except the ignored ones."""
    known = mask != IGNORE
    return torch.bincount(mask[known] * M + labels[known], minlength=M * M).view(M, M)


def mean_iou(counts: Tensor, classes: Sequence[int]) -> Tensor:
    """Mean IoU in percent of [..., M, M] counts, over the classes that occur."""
    hits = counts.diagonal(dim1=-2, dim2=-1).double()
    iou = hits / (counts.sum(-1) + counts.sum(-2) - hits)  # NaN if in neither truth nor labels
    return 100 * iou[..., list(classes)].nanmean(dim=-1)


def interval(counts: Tensor, base: Tensor, classes: Sequence[int]) -> tuple[float, float]:
    """95 % interval of the difference in mIoU, images [n, M, M] drawn again in pairs."""
    n, M = len(counts), counts.shape[1]
    drawn = np.random.default_rng(0).multinomial(n, [1 / n] * n, size=BOOTSTRAPS)
    times = torch.from_numpy(drawn).double()  # [bootstraps, n]
    both = ((times @ x.double().flatten(1)).view(-1, M, M) for x in (counts, base))
    after, before = (mean_iou(x, classes) for x in both)
    low, high = np.quantile((after - before).numpy(), [0.025, 0.975])
    return float(low), float(high)


def summarise(
    folder: Folder, counts: dict[tuple[str, str, str], list[Tensor]]
) -> dict[str, dict[str, Any]]:
    """Return mIoU, difference to upsampling alone and its interval, by cell and row."""
    out: dict[str, dict[str, Any]] = {}
    for (attention, logits, row), images in counts.items():
        base = torch.stack(counts["-", logits, "upsampling alone"])
        stacked = torch.stack(images)
        parts = {"difference": slice(None), "even": slice(0, None, 2), "odd": slice(1, None, 2)}
        for mean, classes in folder.means.items():
            differences = {
                part: float(mean_iou(stacked[which].sum(0), classes))
                - float(mean_iou(base[which].sum(0), classes))
                for part, which in parts.items()
            }
            out.setdefault(f"{mean} | {logits} | {attention}", {})[row] = {
                "miou": float(mean_iou(stacked.sum(0), classes)),
                "interval": interval(stacked, base, classes),
                **differences,
            }
    return out


def markdown(cells: dict[str, dict[str, Any]], attention: str) -> str:
    """Format the cells of one attention as a table: a line for each cell, a column for each row."""
    chosen = [name.split(" | ")[:2] for name in cells if name.endswith(f" | {attention}")]
    here = [cell for name, cell in cells.items() if name.endswith(f" | {attention}")]
    rows = list(dict.fromkeys(row for cell in here for row in cell))
    lines = [["cell", "alone", *rows], ["---", "---:", *("---:" for _ in rows)]]
    for mean, logits in chosen:
        alone = cells[f"{mean} | {logits} | -"]["upsampling alone"]["miou"]
        line = [f"{mean}, {logits}", f"{alone:.1f}"]
        for row in rows:
            cell = cells[f"{mean} | {logits} | {attention}"].get(row)
            if cell is None:  # measured without this row
                line.append("-")
                continue
            low, high = cell["interval"]
            line.append(f"{cell['difference']:+.1f} [{low:+.1f}, {high:+.1f}]")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def overall(cells: dict[str, dict[str, Any]]) -> str:
    """Format, for each row, the mean and the worst over the cells of the paper's kind.

    These are without the probe, the k-k attention and COCO. Even images, counted from 0, are those
    on which the defaults were chosen.
    """
    core = {
        key: cell
        for key, cell in cells.items()
        if not key.endswith("-") and "probe" not in key and "COCO" not in key and "keys" not in key
    }
    head = ["row"]
    for part in ("all images", "even images", "odd images"):
        head += [f"mean, {part}", f"worst, {part}"]
    lines = [[*head, "worst cell"], ["---", *("---:" for _ in head[1:]), "---"]]
    for row in next(iter(core.values())):
        line = [row]
        for part in ("difference", "even", "odd"):
            values = [cell[row][part] for cell in core.values()]
            line += [f"{sum(values) / len(values):+.1f}", f"{min(values):+.1f}"]
        worst = min(core, key=lambda key: core[key][row]["difference"])
        lines.append([*line, worst.replace(" | ", ", ")])
    title = f"Over {len(core)} cells\n\n"
    return title + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def measure(
    folder: Folder, args: argparse.Namespace, seconds: dict[str, list[float]]
) -> dict[str, dict[str, Any]]:
    """Run all rows on all cells of one data set, and note the seconds of each row."""
    vit = ViT(args.model, folder.name)
    has_probe = "probe" in args.logits and "VOC all" in folder.means and len(folder.ids) > 1
    probe = fit_probe(folder, vit) if has_probe else {}
    counts: dict[tuple[str, str, str], list[Tensor]] = {}
    for stem in tqdm(folder.ids, folder.name):
        sample = folder.read(stem)
        with torch.no_grad():
            for attention, logits, row, found, spent in measure_image(
                folder, sample, vit, probe, args
            ):
                counts.setdefault((attention, logits, row), []).append(found)
                if row in seconds:
                    seconds[row].append(spent)
    return summarise(folder, counts)


def main() -> None:
    """Measure the folders and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sets = [SHARED / name for name in ("voc_real", "camvid_real", "coco_real")]
    parser.add_argument("--data", type=Path, nargs="+", default=sets)
    parser.add_argument("--attention", nargs="+", choices=ATTENTION, default=ATTENTION[:3])
    parser.add_argument("--logits", nargs="+", choices=LOGITS, default=LOGITS)
    parser.add_argument(
        "--rows", nargs="+", choices=[*ROWS, *RIVALS], default=[*ROWS, *RIVALS][:-1]
    )
    parser.add_argument("--model", type=Path, default=SHARED / "dinov2_s14")
    parser.add_argument("--limit", type=int, help="only the first N images")
    parser.add_argument("--part", choices=("all", "even", "odd"), default="all")
    parser.add_argument("--upsampler", choices=(*BUILT_IN, "pixels"), default="jbu")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    cells: dict[str, dict[str, Any]] = {}
    seconds: dict[str, list[float]] = {row: [] for row in args.rows}
    for root in args.data:
        cells |= measure(open_folder(root, args.limit, args.part), args, seconds)
    for name in args.attention:
        print(f"\nAttention: {name}\n\n{markdown(cells, name)}")
    print(f"\n{overall(cells)}\n")
    medians = {row: float(np.median(x)) for row, x in seconds.items()}
    print("Seconds to score an image, median, without the chain and the upsampling:")
    print(", ".join(f"{row} {x:.3f}" for row, x in medians.items()))
    if args.json:
        report = {"machine": machine(), "seconds": medians, "cells": cells}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
