"""The exponential moving average of the weights: what is sampled and exported."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

Tensors = tuple[Tensor, ...] | list[Tensor]


def averaged(network: nn.Module, decay: float) -> AveragedModel:
    """An average of ``network``, updated as m <- d_n m + (1 - d_n) w with d_n = min(decay, (1 + n) / (10 + n)).

    The warm-up d_n lets the average follow the weights while they still move fast; n counts updates, on the CPU
    wherever the weights are. Buffers are copied.
    """

    @torch.no_grad()
    def update(means: Tensors, weights: Tensors, count: Tensor | int) -> None:
        n = int(mean.n_averaged)  # the same as count, which lies with the weights: reading it would wait for a GPU
        torch._foreach_lerp_(means, weights, 1 - min(decay, (1 + n) / (10 + n)))

    mean = AveragedModel(network, multi_avg_fn=update)
    return mean
