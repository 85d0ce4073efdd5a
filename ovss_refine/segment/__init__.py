"""`ovss-refine segment`: folders of images in, files of segmentations out."""
