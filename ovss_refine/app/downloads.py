"""The files of a result, written for the visitor it belongs to."""

import zipfile
from pathlib import Path
from typing import BinaryIO

from ovss_refine.folders.files import write_whole
from ovss_refine.segment.outputs import write_outputs
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

# What has a button of its own, by the ending of its name; the archive holds these and the others.
ENDINGS = {"labels": "labels.png", "overlay": "overlay.png", "rle": "rle.json", "all": "all.zip"}


def write_downloads(made: Segmentation, stem: str, folder: Path) -> dict[str, Path]:
    """Write what can be downloaded: the files that `segment` makes, and an archive of them.

    Args:
        made: a result with a baseline.
        stem: what the names of the files begin with.
        folder: where to.

    Returns:
        The keys of `ENDINGS`, with a file each.
    """
    written = write_outputs(folder, stem, made, Outputs(baseline=True, rle=True, maps=True))
    paths = {key: folder / f"{stem}_{ending}" for key, ending in ENDINGS.items()}

    def pack(file: BinaryIO) -> None:
        # Pictures are compressed already.
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for path in written:
                archive.write(path, path.name)

    write_whole(paths["all"], pack)
    return paths
