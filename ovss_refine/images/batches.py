"""Batches of images of one size."""

from collections.abc import Iterator, Sequence

from ovss_refine.images.read import RGB

# The largest batch: images, and pixels of all images.
BATCH_IMAGES, BATCH_PIXELS = 8, 1 << 23


def batches(images: Sequence[RGB]) -> Iterator[list[int]]:
    """Group images of one size: yield the indices of each batch, in order of first occurrence.

    An image of more than `BATCH_PIXELS` is a batch of its own.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(i)
    for (H, W, _), group in by_size.items():
        n = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (H * W)))
        yield from (group[start : start + n] for start in range(0, len(group), n))
