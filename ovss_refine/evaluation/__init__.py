"""Evaluation: baseline against refined, by mIoU, on eight data sets and on your own folder.

`dataset` describes data sets, `check` and `convert` verify and prepare them, `engine.evaluate`
measures, and `run` turns a request into tables.
"""

from ovss_refine.method.modes import CONTROLS

# Here because the command line needs them before torch is imported.
ROWS = ("baseline", "upsampling", "refined", "paper", *CONTROLS)
RIVALS = ("lposs", "lposs+")  # other methods' refinements, slower, on request
CONVERSIONS = ("coco-object", "coco-stuff", "cityscapes", "context")
