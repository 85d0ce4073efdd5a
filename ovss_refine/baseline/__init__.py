"""Baselines of the refinement: the published decision rule and PAMR."""
