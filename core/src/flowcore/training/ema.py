"""The exponential moving average of the weights: what is sampled and exported."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import AveragedModel


class Average(AveragedModel):
    """An average of ``network``, updated as m <- d_n m + (1 - d_n) w with d_n = min(decay, (1 + n) / (10 + n)).

    The warm-up d_n lets the average follow the weights while they still move fast; n counts updates, on the CPU
    wherever the weights are. Buffers are copied. torch's own update walks through both modules and groups their tensors
    at every step, and waits for a GPU to read n: here the lists are made once.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        super().__init__(network)
        self.decay = decay
        self._lists: tuple[list[Tensor], ...] | None = None

    @torch.no_grad()
    def update_parameters(self, network: nn.Module) -> None:
        """Take the weights of ``network``, always the same one, into the average."""
        if self._lists is None:
            both = (self.module, network)
            self._lists = (*(shards(m.parameters()) for m in both), *(shards(m.buffers()) for m in both))
        means, weights, copies, buffers = self._lists
        n = int(self.n_averaged)
        if n == 0:
            torch._foreach_copy_(means, weights)
        else:
            torch._foreach_lerp_(means, weights, 1 - min(self.decay, (1 + n) / (10 + n)))
        if buffers:
            torch._foreach_copy_(copies, buffers)
        self.n_averaged += 1


def shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors themselves, or where they are sharded the part that this process holds."""
    return [one.to_local() if isinstance(one, DTensor) else one for one in tensors]
