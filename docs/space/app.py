"""The web page as a Hugging Face Space; anywhere else, the local page."""

import os

from ovss_refine.app.request import AppRequest
from ovss_refine.app.server import serve


def main() -> None:
    """Serve the page to the host that the Space names, or to this machine alone."""
    space = os.environ.get("SPACE_HOST")  # USER-SPACE.hf.space, set by Hugging Face
    if space is None:
        serve(AppRequest())
    else:
        os.environ.setdefault("GRADIO_ROOT_PATH", f"https://{space}")
        serve(AppRequest(host="0.0.0.0", browser=False))


if __name__ == "__main__":
    main()
