"""Reading images in any form, and drawing segmentations."""
