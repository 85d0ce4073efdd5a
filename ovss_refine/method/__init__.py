"""The paper, one file per section; nothing else."""
