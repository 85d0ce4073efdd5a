"""Evaluation: baseline against refined, by mIoU, on eight data sets and on one's own.

`dataset` says what a data set is, `check` and `convert` make sure of it, `engine.evaluate` does the
work, `reproduce` does it for every table of the paper, `cli` has the commands.
"""

# Here, because the command line needs them before torch is imported.
ROWS = ("baseline", "upsampling", "refined", "propagation", "anchored")
CONVERSIONS = ("coco-object", "coco-stuff", "cityscapes", "context")
TABLES = (
    "main",
    "components",
    "attention-weights",
    "logits",
    "sources",
    "versatility",
    "cost",
    "timestep",
    "resolution",
    "tau",
    "nms",
)
