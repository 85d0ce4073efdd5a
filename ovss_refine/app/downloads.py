"""The files of a result that a visitor can download."""

import zipfile
from pathlib import Path

from ovss_refine.segment.outputs import write_outputs
from ovss_refine.segment.request import Outputs
from ovss_refine.segmentation import Segmentation

# The buttons: how the file's name ends, and the text. The archive also holds what has no button.
DOWNLOADS = {
    "file_labels": ("labels.png", "Label map (PNG)"),
    "file_overlay": ("overlay.png", "Overlay (PNG)"),
    "file_rle": ("rle.json", "Masks (COCO RLE)"),
    "file_all": ("all.zip", "All files (ZIP)"),
}


def write_downloads(made: Segmentation, stem: str, folder: Path) -> dict[str, Path]:
    """Write the files of a result with a baseline, as `segment` does, and an archive of them.

    File names begin with `stem`. Returns the path of each of `DOWNLOADS`.
    """
    written = write_outputs(folder, stem, made, Outputs(baseline=True, rle=True, maps=True))
    paths = {key: folder / f"{stem}_{ending}" for key, (ending, _) in DOWNLOADS.items()}
    with zipfile.ZipFile(paths["file_all"], "w") as archive:  # uncompressed: the images already are
        for path in written:
            archive.write(path, path.name)
    return paths
