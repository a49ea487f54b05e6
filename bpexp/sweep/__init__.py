"""A Hydra sweep as one program: compose, group, run, and put the results together."""
