"""What the refinement is compared with: the published decision rule and PAMR."""
