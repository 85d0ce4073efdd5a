"""Images of the gallery: whatever a script shows with `Image.show()`.

The scripts need no special code. Run by hand, they open the images in the system's viewer.
"""

from collections.abc import Mapping
from typing import Any

from PIL import Image, ImageShow
from sphinx_gallery.scrapers import figure_rst

SHOWN: list[Image.Image] = []


class Collector(ImageShow.Viewer):
    """A viewer that keeps images instead of showing them."""

    def show(self, image: Image.Image, **options: Any) -> int:
        """Keep `image`; return 1, so that no other viewer is tried."""
        SHOWN.append(image.copy())
        return 1


def scrape(block: Any, block_vars: Mapping[str, Any], gallery_conf: Mapping[str, Any]) -> str:
    """Save what a block has shown; return the directives that insert it."""
    paths = []
    for image, path in zip(SHOWN, block_vars["image_path_iterator"], strict=False):
        image.save(path)
        paths.append(path)
    SHOWN.clear()
    return str(figure_rst(paths, gallery_conf["src_dir"]))


def setup(app: Any) -> dict[str, bool]:
    """Register the viewer ahead of all others."""
    ImageShow.register(Collector(), order=0)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
