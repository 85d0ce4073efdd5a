"""Reading an uploaded image: limits first, then one sentence on what is wrong."""

from dataclasses import dataclass
from pathlib import Path

from ovss_refine.images.read import RGB, read_image


@dataclass(frozen=True, slots=True, eq=False)
class NamedImage:
    """An image to segment.

    Attributes:
        name: the file's name without folder and suffix.
        pixels: [H, W, 3] uint8.
    """

    name: str
    pixels: RGB


def read_upload(path: Path, *, max_bytes: int, max_pixels: int | None) -> NamedImage:
    """Read an uploaded file; nothing is decoded until its size is known to be allowed.

    Args:
        path: the file, with the name it had on the visitor's machine.
        max_bytes: the largest file accepted.
        max_pixels: the largest image accepted, by the file's header; None: as `read_image`.

    Raises:
        ValueError: if it is too large or not a readable image; the message names the file but not
            its folder on the server.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"`{path}` must have at most {max_bytes:,} bytes; got {size:,}. --max-bytes raises "
                "the limit."
            )
        return NamedImage(path.stem, read_image(path, max_pixels=max_pixels))
    except FileNotFoundError:
        raise ValueError(f"`{path.name}` is gone from the server; drop it again.") from None
    except ValueError as err:
        raise ValueError(str(err).replace(str(path), path.name)) from err
