"""The paper's tables and curves, measured: `ovss-refine reproduce`."""

# Here because the command line needs them before torch is imported.
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
