"""Sources of logits and attention: listed, and loaded lazily."""

from typing import Literal

# What a model may compute in, by name; "auto" depends on the device.
DtypeName = Literal["auto", "float32", "bfloat16", "float16"]
# In place of the name of a source of attention: that which the source of logits computes.
OWN = "own"
# Of the flags of that name.
DTYPE_HELP = (
    "what models compute in; auto: the fastest of the device (default: the dtype of their weights)"
)
