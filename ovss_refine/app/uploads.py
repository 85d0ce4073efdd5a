"""Reading what was dropped on the page: limits first, then one sentence for what is wrong."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ovss_refine.images.read import read_image


@dataclass(frozen=True, slots=True, eq=False)
class Upload:
    """A photograph to work on.

    Attributes:
        name: what to call it, without folder and suffix.
        pixels: [H, W, 3] uint8.
    """

    name: str
    pixels: NDArray[np.uint8]


def read_upload(path: Path, *, max_bytes: int, max_pixels: int) -> Upload:
    """Read an uploaded file; nothing is decoded before its size is known to be allowed.

    Args:
        path: the file, under the name it had on the visitor's machine.
        max_bytes: most bytes of the file.
        max_pixels: most pixels, by the header of the file.

    Raises:
        ValueError: if it is too large or no picture; the message names the file, without
            the folder it lies in on the server.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise ValueError(
                f"`{path}` must have at most {max_bytes:,} bytes; got {size:,}. --max-bytes raises "
                "the limit."
            )
        return Upload(path.stem, read_image(path, max_pixels=max_pixels))
    except FileNotFoundError:
        raise ValueError(f"`{path.name}` is gone from the server; drop it again.") from None
    except ValueError as err:
        raise ValueError(str(err).replace(str(path), path.name)) from err
