"""Reading images in any form, and drawing segmentations."""

# The default limit on an image's pixels: computing at full size takes some 6 GB for three classes.
# Defined here because the command line needs it without importing Pillow and NumPy.
MAX_PIXELS = 50_000_000
