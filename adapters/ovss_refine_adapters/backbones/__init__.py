"""Models of timm, open_clip and diffusers: loading, positions, preprocessing, capture."""
