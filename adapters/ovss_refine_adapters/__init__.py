"""Sources of attention and logits for `ovss_refine`, found through entry points."""

import ovss_refine  # noqa: F401 - it knows where the modules of version 0.1 moved to
