"""Reading images in any form, and drawing segmentations."""

# The most pixels an image may have by default: all that is computed at full size takes some 6 GB
# at three classes. Here, because the command line needs it before Pillow and NumPy are imported.
MAX_PIXELS = 50_000_000
