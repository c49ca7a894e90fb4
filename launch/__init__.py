"""Starts runs: of several processes, on TPU slices, under Slurm and Kubernetes, and many in a sweep."""
