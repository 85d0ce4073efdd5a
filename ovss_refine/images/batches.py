"""Batches of images of one size."""

from collections.abc import Iterator, Sequence

from ovss_refine.images.read import RGB

# The largest batch: images, and pixels in all.
BATCH_IMAGES, BATCH_PIXELS = 8, 1 << 23


def batches(images: Sequence[RGB]) -> Iterator[list[int]]:
    """Group images by size, in the order in which the sizes first occur.

    Yields:
        The indices of a batch; an image of more than `BATCH_PIXELS` is alone.
    """
    by_size: dict[tuple[int, ...], list[int]] = {}
    for i, image in enumerate(images):
        by_size.setdefault(image.shape, []).append(i)
    for (H, W, _), group in by_size.items():
        n = max(1, min(BATCH_IMAGES, BATCH_PIXELS // (H * W)))
        yield from (group[start : start + n] for start in range(0, len(group), n))
