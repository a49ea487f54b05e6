"""Random streams: reproducible, and separate for every seed and purpose."""

import hashlib
import itertools

import pytest
import torch

from bpexp.streams import generator

PURPOSES = ("split", "init", "order", "dropout", "data")


def draws(seed: int, purpose: str) -> torch.Tensor:
    return torch.rand(64, generator=generator(seed, purpose), dtype=torch.float64)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_same_stream_same_numbers(purpose: str) -> None:
    assert torch.equal(draws(3, purpose), draws(3, purpose))


def test_every_seed_and_purpose_has_its_own_numbers() -> None:
    streams = [draws(seed, purpose) for seed in range(20) for purpose in PURPOSES]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(streams, 2))


def test_seed_is_63_bits_of_sha256() -> None:
    digest = int(hashlib.sha256(b"init:7").hexdigest(), 16)
    assert generator(7, "init").initial_seed() == digest >> (256 - 63)


def test_drawing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    draws(0, "init")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_generator_lives_on_its_device() -> None:
    assert generator(0, "dropout", "cuda").device.type == "cuda"
