"""How to multiply thin matrices with large ones, in blocks; knows nothing of the method."""
