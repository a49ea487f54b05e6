"""The experiments: one module for each question, run as `python -m experiments.NAME`."""
