"""Random draws that depend on (seed, purpose, step, rank) and on nothing else.

A draw made here is the same whatever was drawn before it, so a resumed run continues bit for bit, and the number of
loader workers cannot change a result.
"""

import hashlib

import torch


def derive(seed: int, *labels: int | str) -> int:
    """A 63-bit seed for ``labels`` under ``seed``; distinct labels give unrelated streams."""
    digest = hashlib.blake2b(repr((seed, labels)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(seed: int, *labels: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator for one purpose: ``generator(seed, "train", step, rank)``."""
    return torch.Generator(device).manual_seed(derive(seed, *labels))


def seed_global(seed: int, device: torch.device) -> None:
    """Seed what draws without a generator, as dropout does, on the CPU and on ``device``.

    As ``torch.manual_seed``, which takes forty times as long where CUDA is there to be seeded and not yet in use.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
