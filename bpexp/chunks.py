"""How many networks train side by side in one group. Torch is not needed to say it."""

from bpexp.spec import Config

CACHE = 2**18
"""Bytes that one layer's activations of all networks may have: a quarter of a core's own cache of 1 MiB, in which the
layer's inputs, results and their gradients lie together."""

FEWEST, MOST = 16, 64
"""Networks: with fewer, calls and the building of groups cost more than the cache saves; more gain nothing."""

BYTES = {"float32": 4, "float64": 8}


def chunk_size(config: Config) -> int:
    """Return the largest number of networks of this structure that a group should have.

    It depends on the configuration alone, and not on the machine: groups are the same everywhere.
    """
    of_layer = config.train.batch_size * config.model.width * BYTES[config.dtype]
    return min(max(CACHE // of_layer, FEWEST), MOST)
