"""Training and sampling speed at 32 x 32 and 36 M parameters, beside torchcfm's network and its training step.

    python plugins/images/benchmarks/speed.py --data DIR [--steps 150] [--batch 512] [--out speed.json]

DIR holds CIFAR-10 as JPEG in an npz (arrays jpeg, offsets, labels). Needs torchcfm (core/benchmarks/peers.txt), and a
GPU for figures that mean something; --accelerator cpu with --quick is for a look whether it works. The peer gets
batches that lie on the GPU already, ours come through the data set and the loop that `platform run` uses. Speeds are
those of the last two thirds of the steps, or of the chunks of samples, between two points at which the device's queue
is empty.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from scaling import decoded
from torch import nn

from flowcore.seeds import derive
from flowcore.training.loop import begin, fit
from flowplat.config import resolve
from flowplat.experiment import Experiment

CHUNKS = 6


def peer(quick: bool) -> nn.Module:
    """The network of torchcfm's CIFAR-10 example."""
    from torchcfm.models.unet import UNetModel

    return UNetModel(
        dim=(3, 32, 32), num_res_blocks=1 if quick else 2, num_channels=32 if quick else 128, channel_mult=[1, 2, 2, 2],
        num_heads=4, num_head_channels=16 if quick else 64, attention_resolutions="16", dropout=0.1,
    )  # fmt: skip


def steps_by_hand(
    network: nn.Module, images: torch.Tensor, batch: int, steps: int, as_its_example: bool
) -> dict[str, Any]:
    """Flow matching as torchcfm's example trains it; or with a fused optimiser, one call for the average, 16 bits."""
    device = images.device
    network = network.to(device).train()
    average = copy.deepcopy(network)
    called: Callable[..., Any] = network if as_its_example else torch.compile(network)
    adam = torch.optim.Adam if as_its_example else torch.optim.AdamW
    optimizer = adam(network.parameters(), lr=2e-4, **({} if as_its_example else {"fused": True}))
    weights, means = list(network.parameters()), list(average.parameters())
    clock, losses = Clock(device, steps), []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-4 * min(1.0, (step + 1) / 101)
        x1 = images[torch.randint(len(images), (batch,), device=device)].float() / 127.5 - 1
        x0, t = torch.randn_like(x1), torch.rand(batch, device=device)
        xt = torch.lerp(x0, x1, t[:, None, None, None])
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=not as_its_example):
            v = called(t, xt)
        loss = (v.float() - (x1 - x0)).square().mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if as_its_example:  # tensor by tensor, as its `ema` does
            for mean, weight in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
                mean.copy_(mean * 0.9999 + weight * (1 - 0.9999))
        else:
            with torch.no_grad():
                torch._foreach_lerp_(means, weights, 1e-4)
        losses.append(loss.detach())
        clock.tick()
    return {"samples_per_s": batch / clock.step(), "first_step_s": clock.first, "losses": curve(losses)}


class Clock:
    """Seconds a step, over the last two thirds of ``steps``; the device's queue is emptied only at both ends."""

    def __init__(self, device: torch.device, steps: int) -> None:
        self.device, self.steps, self.done = device, steps, 0
        self.begun = time.perf_counter()
        self.first = self.third = 0.0

    def tick(self) -> None:
        """A step has ended."""
        self.done += 1
        if self.done == 1:
            self.first = self._now() - self.begun
        if self.done == max(1, self.steps // 3):
            self.third = self._now()

    def step(self) -> float:
        """After the last step."""
        return (self._now() - self.third) / (self.steps - max(1, self.steps // 3))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def curve(losses: list[Any]) -> list[float]:
    """Means over quarters of the run."""
    quarter = max(1, len(losses) // 4)
    return [statistics.fmean(float(one) for one in losses[i * quarter : (i + 1) * quarter]) for i in range(4)]


def experiment(data: Path, options: argparse.Namespace) -> Experiment:
    """A run of the images plugin, as `platform run` resolves it."""
    channels = "[32, 64, 64, 64]" if options.quick else "[128, 256, 256, 256]"
    return Experiment(resolve("images", overrides=[
        "data=npz", f"data.path={data}", "network=unet", f"network.channels={channels}", "network.dropout=0.1",
        f"network.blocks={1 if options.quick else 2}", f"train.batch_size={options.batch}",
        f"train.steps={options.steps}", "train.lr=2e-4", "train.warmup=100", "train.schedule=constant",
        "train.ema=0.9999", "train.log_every=1000", f"engine.accelerator={options.accelerator}", "engine.compile=true",
        "engine.precision=bf16-mixed", "sample.precision=bf16-mixed", f"sample.batch_size={2 * options.batch}",
    ]))  # fmt: skip


def main() -> None:
    """Print the table, and keep it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--limit", type=int, help="pictures; all if not given")
    parser.add_argument("--calls", type=int, default=50, help="network calls of a sample")
    parser.add_argument("--accelerator", default="cuda")
    rows = ("example", "peer", "training")
    parser.add_argument("--without", nargs="*", default=[], choices=rows, help="rows to leave out")
    parser.add_argument("--quick", action="store_true", help="small networks")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.accelerator)
    torch.backends.cudnn.benchmark = True  # for all of them
    card = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    found: dict[str, Any] = {"card": card, "torch": torch.__version__, "batch": options.batch, "steps": options.steps}
    print(card, torch.__version__, flush=True)

    def tell(name: str, row: dict[str, Any]) -> None:
        found[name] = row
        print(f"  {name:32}", "  ".join(f"{key} {_short(value)}" for key, value in row.items()), flush=True)
        if options.out is not None:
            options.out.write_text(json.dumps(found, indent=2) + "\n")

    with tempfile.TemporaryDirectory() as place:
        data = decoded(options.data, Path(place) / "cifar.npz", options.limit)
        run = experiment(data, options)
        images = run.data.loaded.x.to(device)
        if "example" not in options.without:
            torch.manual_seed(0)
            few = min(options.steps, 45)
            tell("torchcfm, as its example", steps_by_hand(peer(options.quick), images, options.batch // 4, few, True))
        if "peer" not in options.without:
            network = peer(options.quick)
            row = steps_by_hand(network, images, options.batch, options.steps, False)
            tell("torchcfm's network, compiled", row)
            tell("torchcfm's network, sampled", sampled_by_hand(network.eval(), 2 * options.batch, options.calls))
        if "training" not in options.without:
            tell("ours", train(run))
        tell("ours, sampled", sampled(run, options.calls))


def train(run: Experiment) -> dict[str, Any]:
    """The loop of `platform run`, without what is drawn and measured afterwards."""
    settings = run.config.train
    network = run.network()
    clock, losses = Clock(run.device, settings.steps), []

    def loss(*told: Any) -> torch.Tensor:
        value = run.loss(*told)
        losses.append(value.detach().mean())
        return value

    def after(step: int) -> None:
        clock.tick()

    fit(begin(network, settings, run.engine), loss, run.source, settings, derive(run.config.seed, "train"),
        lambda row: None, lambda state: None, after, engine=run.engine)  # fmt: skip
    count = sum(p.numel() for p in network.parameters())
    return {"samples_per_s": settings.batch_size / clock.step(), "first_step_s": clock.first, "losses": curve(losses),
            "parameters": count}  # fmt: skip


@torch.no_grad()
def sampled_by_hand(network: nn.Module, batch: int, calls: int) -> dict[str, Any]:
    """Euler steps of the compiled network."""
    device = next(network.parameters()).device
    called = torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)

    def draw() -> None:
        x = torch.randn(batch, 3, 32, 32, device=device)
        for step in range(calls):
            t = torch.full((batch,), step / calls, device=device)
            with torch.autocast(device.type, torch.bfloat16):
                v = called(t, x)
            x = x + v.float() / calls

    return _calls(draw, device, batch * calls)


def sampled(run: Experiment, calls: int) -> dict[str, Any]:
    """Chunks as `platform sample` draws them."""
    network, size = run.network(), run.config.sample.batch_size
    return _calls(lambda: run.chunk(network, 0, size, calls, 0), run.device, size * calls)


def _calls(draw: Callable[[], Any], device: torch.device, calls: int) -> dict[str, Any]:
    clock = Clock(device, CHUNKS)
    for _ in range(CHUNKS):
        draw()
        clock.tick()
    return {"calls_per_s": calls / clock.step(), "first_step_s": clock.first}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(f"{one:.4f}" for one in value)
    return f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    main()
