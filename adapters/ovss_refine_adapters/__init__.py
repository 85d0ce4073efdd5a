"""Sources of attention and logits for `ovss_refine`, found through entry points."""
