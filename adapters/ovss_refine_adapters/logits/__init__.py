"""Sources of logits."""
