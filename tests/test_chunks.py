"""How many networks train side by side."""

import pytest
from conftest import configure

from bpexp.chunks import chunk_size


@pytest.mark.parametrize(
    ("width", "batch_size", "dtype", "networks"),
    [
        (32, 128, "float32", 16),
        (32, 64, "float32", 32),
        (32, 64, "float64", 16),
        (16, 32, "float32", 64),  # no more are of use
        (48, 64, "float32", 21),
        (256, 256, "float32", 16),  # fewer would not pay for their groups
    ],
)
def test_a_layer_of_all_networks_fits_the_cache(width, batch_size, dtype, networks):
    sizes = {"model.width": width, "train.batch_size": batch_size, "dtype": dtype}
    assert chunk_size(configure(sizes)) == networks
    assert chunk_size(configure(sizes | {"seed": 7, "model.depth": 40})) == networks
