"""Sources of logits and attention: listed, and loaded lazily."""
