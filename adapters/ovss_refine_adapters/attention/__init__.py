"""Sources of attention."""
