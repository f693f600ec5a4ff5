"""A plugin without a path: a normal distribution fitted by likelihood and drawn from, and verbs of its own."""

import math
from typing import Any

import click
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from flowcore.data import Batch
from flowcore.errors import InputError
from flowcore.plugin import hookimpl
from flowcore.plugin.contracts import Objective, Parts, Sampler, Spec
from flowcore.plugin.hookspecs import Register


class Normal(nn.Module):
    """N(mean, std^2), whatever it is called with."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.mean, self.log_std = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        return self.mean.expand_as(x)


class Empty(BaseModel, extra="forbid"):
    """No options."""


def normal(config: Empty, spec: Spec) -> nn.Module:
    return Normal(spec.state.shape)  # type: ignore[union-attr]


def likelihood(parts: Parts, weight: float = 1.0) -> Objective:
    """-w log N(x1; mean, std^2)"""
    assert (parts.path, parts.coupling, parts.times, parts.loss, parts.predicts) == (None,) * 5

    def loss(network: Any, batch: Batch, draws: torch.Generator) -> Tensor:
        away = (batch.x1 - network.mean) / network.log_std.exp()
        each = away.square() / 2 + network.log_std + math.log(2 * math.pi) / 2
        return weight * each.sum(1)

    return loss


def drawn(parts: Parts, spread: float = 1.0) -> Sampler:
    """mean + spread std z"""
    assert (parts.path, parts.solver, parts.predicts, parts.guidance) == (None, None, None, ())

    def sample(network: Any, condition: Any, count: int, steps: int, draws: torch.Generator) -> Batch:
        z = torch.randn(count, *network.mean.shape, generator=draws)
        return Batch(network.mean + spread * network.log_std.exp() * z, condition, extra={"calls": 0, "steps": steps})

    return sample


def straight(parts: Parts) -> Objective:
    """What it is told of a path and of times, and of nothing else."""
    assert (parts.coupling, parts.loss, parts.predicts) == (None,) * 3

    def loss(network: Any, batch: Batch, draws: torch.Generator) -> Tensor:
        assert batch.x0 is None  # nobody has paired it
        return parts.path.sigma(parts.times(len(batch), draws))

    return loss


@click.group()
def tools() -> None:
    """Tools for normal distributions."""


@tools.command()
@click.argument("words", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="An option of its own.")
def say(words: tuple[str, ...], as_json: bool) -> None:
    """Say WORDS."""
    click.echo(f"{as_json} {' '.join(words)}")


@click.command()
@click.option("--how", default="well")
@click.pass_context
def end(context: click.Context, how: str) -> None:
    """End as it is told."""
    match how:
        case "error":
            raise InputError("table.csv has no header; add one")
        case "usage":
            raise click.UsageError("there is no such day")
        case "interrupted":
            raise KeyboardInterrupt
        case "bug":
            raise ZeroDivisionError("by zero")
        case _ if how.isdigit():
            context.exit(int(how))
    click.echo("done")


@hookimpl
def register_networks(register: Register) -> None:
    register("normal", f"{__name__}:normal", config=f"{__name__}:Empty", summary="a normal distribution")


@hookimpl
def register_objectives(register: Register) -> None:
    register("likelihood", f"{__name__}:likelihood", summary="maximum likelihood")
    register("straight", f"{__name__}:straight", summary="of a path", uses=("path", "times"))


@hookimpl
def register_samplers(register: Register) -> None:
    register("drawn", f"{__name__}:drawn", summary="one draw")


@hookimpl
def register_commands(register: Register) -> None:
    register("tools", f"{__name__}:tools", summary="a group of verbs")
    register("end", f"{__name__}:end", summary="ends as it is told")
    register("none", f"{__name__}:likelihood", summary="no command")


@hookimpl
def register_presets(register: Register) -> None:
    register("normal", f"{__package__}:normal.yaml", summary="of the ring's points", default=True)
