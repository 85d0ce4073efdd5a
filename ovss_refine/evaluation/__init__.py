"""Evaluation: baseline against refined, by mIoU, on eight data sets and on a folder of your own.

`dataset` describes data sets, `check` and `convert` verify and prepare them, `engine.evaluate` does
the work, `run` goes from a request to the tables.
"""

from ovss_refine.method.modes import CONTROLS

# Here because the command line needs them before torch is imported.
ROWS = ("baseline", "upsampling", "refined", *CONTROLS)
CONVERSIONS = ("coco-object", "coco-stuff", "cityscapes", "context")
