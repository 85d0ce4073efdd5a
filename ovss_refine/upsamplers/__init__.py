"""What stands at the end of a refinement: maps of patches to maps of pixels, and how to choose."""
