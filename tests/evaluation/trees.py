"""Miniature data sets in the folder layouts of their publishers, and what their masks mean."""

import numpy as np
from PIL import Image

# For every data set: image and mask of an image id, the split file, highest raw value of a mask.
LAYOUTS = {
    "voc21": (
        "VOC2012/JPEGImages/{}.jpg",
        "VOC2012/SegmentationClass/{}.png",
        "VOC2012/ImageSets/Segmentation/val.txt",
        20,
    ),
    "voc20": (
        "VOC2012/JPEGImages/{}.jpg",
        "VOC2012/SegmentationClass/{}.png",
        "VOC2012/ImageSets/Segmentation/val.txt",
        20,
    ),
    "context60": (
        "VOC2010/JPEGImages/{}.jpg",
        "VOC2010/SegmentationClassContext/{}.png",
        "VOC2010/ImageSets/SegmentationContext/val.txt",
        59,
    ),
    "context59": (
        "VOC2010/JPEGImages/{}.jpg",
        "VOC2010/SegmentationClassContext/{}.png",
        "VOC2010/ImageSets/SegmentationContext/val.txt",
        59,
    ),
    "coco-object": (
        "images/val2017/{}.jpg",
        "annotations/val2017/{}_instanceTrainIds.png",
        None,
        80,
    ),
    "coco-stuff": ("images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png", None, 170),
    "cityscapes": (
        "leftImg8bit/val/{}_leftImg8bit.png",
        "gtFine/val/{}_gtFine_labelTrainIds.png",
        None,
        18,
    ),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png", None, 150),
    "folder": ("images/{}.jpg", "masks/{}.png", None, 4),
}
CLASSES = {
    "voc21": 21,
    "voc20": 20,
    "context60": 60,
    "context59": 59,
    "coco-object": 81,
    "coco-stuff": 171,
    "cityscapes": 19,
    "ade20k": 150,
    "folder": 5,
}
ZERO_IS_IGNORED = ("voc20", "context59", "ade20k")
H, W = 24, 32


def ids_of(name, count):
    """Return image ids in the style of the data set, not in alphabetical order."""
    if name == "cityscapes":
        return [f"{'ab'[i % 2]}/{'ab'[i % 2]}_{i:06d}" for i in range(count)]
    return [f"{(7 * i) % 10}_{i:04d}" for i in range(count)]


def write_tree(root, name, count=3, seed=0, size=(H, W)):
    """Write a data set of random images and blocky masks; return its image ids."""
    rng = np.random.default_rng(seed)
    image, mask, split, highest = LAYOUTS[name]
    ids = ids_of(name, count)
    for id in ids:
        path, labels = root / image.format(id), root / mask.format(id)
        path.parent.mkdir(parents=True, exist_ok=True)
        labels.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        Image.fromarray(random_mask(rng, highest, size)).save(labels)
    if split:
        (root / split).parent.mkdir(parents=True, exist_ok=True)
        (root / split).write_text("".join(f"{id}\n" for id in ids))
    if name == "folder":
        (root / "names.txt").write_text("sky\nroad\ntree\ncar\nsign\n")
    return ids


def random_mask(rng, highest, size):
    """Make 8 x 8 blocks of raw values, the highest, 0 and 255 among them."""
    h, w = size[0] // 8, size[1] // 8
    blocks = rng.integers(0, highest + 1, (h, w))
    blocks.flat[rng.permutation(h * w)[:3]] = (0, highest, 255)
    return blocks.repeat(8, 0).repeat(8, 1).astype(np.uint8)


def read_labels(root, name, id):
    """Read the labels of an image by the documented rule: as they are, or shifted by one."""
    raw = np.asarray(Image.open(root / LAYOUTS[name][1].format(id)))
    out = np.full(raw.shape, 255)
    for value in range(LAYOUTS[name][3] + 1):
        label = value - 1 if name in ZERO_IS_IGNORED else value
        out[raw == value] = 255 if label < 0 else label
    return out


def write_arrays(folder, ids, M, seed=0, grid=(3, 4)):
    """Write random logits and features for some images; return the folder."""
    rng = np.random.default_rng(seed)
    for id in ids:
        path = folder / f"{id}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        logits = 3 * rng.normal(size=(M, *grid))
        features = rng.normal(size=(8, *grid))
        np.savez(path, logits=logits.astype(np.float32), features=features.astype(np.float32))
    return folder
