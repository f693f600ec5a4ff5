"""Training without leaving the GPU: windows are cut there, and a whole step is one CUDA graph that is replayed.

Full-size steps of this network are some thousand kernels of a few microseconds, which Python alone cannot feed.
"""

import copy
import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flowcore.data import Source
from flowcore.plugin.contracts import Objective

EVERY = 50  # steps between two looks at the clock


class Fit:
    """One training: Adam, a rate that rises over ``warmup`` steps and falls as a cosine over the time given, gradients
    clipped to norm 0.5, and ``average``, the moving average of the weights, min(ema, (1 + n) / (10 + n)) a step."""

    def __init__(
        self, network: nn.Module, objective: Objective, source: Source, device: torch.device, batch: int, lr: float,
        ema: float, warmup: int = 500,
    ) -> None:  # fmt: skip
        self.network, self.objective, self.source, self.device, self.batch = network, objective, source, device, batch
        self.average = copy.deepcopy(network).requires_grad_(False).eval()
        self.weights = list(network.parameters())
        self.means = list(self.average.parameters())
        self.peak, self.ema, self.warmup = lr, ema, warmup
        cuda = device.type == "cuda"
        self.draws = torch.cuda.default_generators[device.index or 0] if cuda else torch.default_generator
        self.count = torch.zeros((), device=device)
        self.progress = torch.zeros((), device=device)
        self.losses = torch.zeros(2, device=device)  # of the last steps: their sum, and that of their squares
        self.lr = torch.zeros((), device=device)
        self.optimizer = torch.optim.Adam(
            self.weights, lr=self.lr, **({"fused": True, "capturable": True} if cuda else {})
        )
        self.graph: Any = None

    def step(self) -> None:
        """One step, with nothing in it that waits for the GPU."""
        rows = torch.randint(len(self.source), (self.batch,), device=self.device)
        loss = self.objective(self.network, self.source.batch(rows, self.draws), self.draws).mean()
        for weight, gradient in zip(self.weights, torch.autograd.grad(loss, self.weights), strict=True):
            weight.grad = gradient.contiguous()  # laid out as the weight, which the fused optimizer asks for
        nn.utils.clip_grad_norm_(self.weights, 0.5, foreach=True)
        with torch.no_grad():
            self.count += 1
            rise = (self.count / self.warmup).clamp(max=1)
            self.lr.copy_(self.peak * rise * 0.5 * (1 + torch.cos(math.pi * self.progress)))
        self.optimizer.step()
        with torch.no_grad():
            keep = ((1 + self.count) / (10 + self.count)).clamp(max=self.ema)
            torch._foreach_mul_(self.means, keep)
            torch._foreach_add_(self.means, torch._foreach_mul([w.detach() for w in self.weights], 1 - keep))
            found = loss.detach()
            self.losses += torch.stack([found, found.square()])

    def capture(self) -> None:
        """Make the step a graph. Raises ``RuntimeError`` where what is replayed is not what was captured."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(5):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        self.losses.zero_()
        for _ in range(20):
            graph.replay()
        total, square = self.losses.tolist()
        if not math.isfinite(total) or square / 20 - (total / 20) ** 2 <= 1e-9 * square:
            raise RuntimeError("replayed steps have the same losses, or none: their draws do not move on")
        self.graph = graph

    def pace(self, steps: int = 40) -> float:
        """Steps a second, measured on training steps."""
        self._wait()
        began = time.perf_counter()
        for _ in range(steps):
            self.once()
        self._wait()
        return steps / (time.perf_counter() - began)

    def once(self) -> None:
        if self.graph is None:
            self.step()
        else:
            self.graph.replay()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def run(self, seconds: float, looks: int, look: Callable[[nn.Module], float]) -> dict[str, Any]:
        """Train for so many seconds, what ``look`` takes included, and leave in ``average`` the weights that looked
        best of ``looks`` looks, the last one at the end."""
        began, history, best = time.perf_counter(), [], math.inf
        kept = copy.deepcopy(self.average.state_dict())
        trained, done = 0.0, False
        spent = [0.0]  # in looks
        self.losses.zero_()
        seen = 0
        while not done:
            start = time.perf_counter()
            for _ in range(EVERY if self.device.type == "cuda" else 5):
                self.once()
                seen += 1
            self._wait()
            trained += time.perf_counter() - start
            passed = time.perf_counter() - began
            whole = seconds - max(spent) * (looks - len(history))  # what is left for steps, if looks go on as they did
            self.progress.fill_(min(1.0, trained / max(1e-3, whole - sum(spent))))
            share = trained / max(1e-3, whole - sum(spent))
            done = share >= 1 or passed > seconds
            if done or share >= (len(history) + 1) / looks:
                start = time.perf_counter()
                found = look(self.average)
                spent.append(time.perf_counter() - start)
                loss = self.losses[0].item() / seen
                history.append((int(self.count), round(loss, 5), round(found, 5)))
                print(f"   step {history[-1][0]}, loss {loss:.4f}, validation {found:.5f}", flush=True)
                self.losses.zero_()
                seen = 0
                if found < best:
                    best = found
                    kept = {name: one.clone() for name, one in self.average.state_dict().items()}
        self.average.load_state_dict(kept)
        return {
            "steps": int(self.count), "seconds": round(time.perf_counter() - began, 1), "graph": self.graph is not None,
            "steps_per_s": round(int(self.count) / max(trained, 1e-9), 1), "best_validation": round(best, 5),
            "step_loss_validation": history,
        }  # fmt: skip


def fit(
    network: nn.Module, objective: Objective, source: Any, device: torch.device, seconds: float, looks: int,
    look: Callable[[nn.Module], float], *, batch: int = 64, lr: float = 1e-3, ema: float = 0.9995, graph: bool = True,
) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """The averaged network, and how its training went."""
    began = time.perf_counter()
    held = source.to(device)
    one = Fit(network, objective, held, device, batch, lr, ema, warmup=500 if device.type == "cuda" else 20)
    told: dict[str, Any] = {}
    if device.type == "cuda":
        one.pace(5)
        told["eager_steps_per_s"] = round(one.pace(), 1)
        if graph:
            one.capture()
            told["graph_steps_per_s"] = round(one.pace(100), 1)
    return one.average, told | one.run(seconds - (time.perf_counter() - began), looks, look)
