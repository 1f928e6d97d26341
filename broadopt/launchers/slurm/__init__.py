"""hydra/launcher=slurm: the script of its jobs, what is in the queue, and the wait for what was submitted."""
