"""Where a run computes: its device, its precision, its processes and how they speak. Thin over Lightning Fabric.

One process on one device, several on one machine, several machines under torchrun or SLURM: the same code. Rows of a
batch, chunks of samples and shards of pairs are dealt out by ``rank`` of ``world``; what must be done once is done by
the first process, ``first(work)``.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision, Precision
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn

from flowcore.errors import FlowError, MachineError, UsageError
from flowcore.state import tree_map
from flowcore.training.settings import EngineSettings

T = TypeVar("T")

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # a line for each process is no news
FIRST = "FLOWCORE_STARTED_BY"  # the number of the process that started this one
LARGE = 1_000_000  # parameters of a block that fsdp shards by itself


class Engine:
    """``Engine(settings)`` chooses the device; ``launch()`` starts the other processes, or joins those that run.

    Raises ``MachineError`` where the machine has not what the settings ask for.
    """

    def __init__(self, settings: EngineSettings | None = None) -> None:
        self.settings = settings = settings or EngineSettings()
        accelerator, present = _accelerator(settings)
        devices, nodes, environment = _place(settings)
        wanted = devices if isinstance(devices, int) else len(devices) if isinstance(devices, list) else present
        if accelerator == "cuda" and (max(devices, default=0) if isinstance(devices, list) else wanted - 1) >= present:
            raise MachineError(f"engine.devices={devices}: this machine has {present} of them; engine.devices=auto")
        if isinstance(devices, list) and accelerator != "cuda":
            raise UsageError(f"engine.devices={devices} names GPUs, and this is accelerator {accelerator}")
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        several = wanted * nodes > 1
        self.sharded = several and settings.strategy == "fsdp"
        if accelerator == "cuda" and settings.compile:  # one batch size after another: the quickest convolutions pay
            torch.backends.cudnn.benchmark = True
        self.fabric = Fabric(
            accelerator=accelerator,
            devices=wanted if devices == "auto" else devices,
            num_nodes=nodes,
            strategy=self._strategy(wanted * nodes) if several else "auto",
            plugins=[_precision(settings.precision, accelerator), *([environment] if several else [])],
        )
        self.device = self.fabric.device
        if several and accelerator == "cuda":  # Fabric wraps the network on a stream of its own, to no harm
            torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)
        self._group: Any = None  # of the processors, beside the GPUs' own: what is said there waits for no kernel
        self._said: tuple[Any, Tensor] | None = None

    def _strategy(self, world: int) -> Any:
        timeout = timedelta(seconds=self.settings.timeout)
        if self.settings.strategy == "fsdp":
            return ModelParallelStrategy(_shard, data_parallel_size=world, tensor_parallel_size=1, timeout=timeout)
        unused = self.settings.strategy == "ddp_find_unused_parameters_true"
        return DDPStrategy(timeout=timeout, find_unused_parameters=unused)

    @property
    def rank(self) -> int:
        """This process's number, 0 for the first."""
        return self.fabric.global_rank

    @property
    def world(self) -> int:
        """How many processes there are."""
        return self.fabric.world_size

    def launch(self) -> None:
        """Start the other processes of this machine, which run the same command, and wait until all are there."""
        if self.world == 1 or self._group is not None:
            self.fabric.launch()
            return
        if first := os.environ.pop(FIRST, None):
            threading.Thread(target=_end_with, args=(int(first),), daemon=True).start()
        os.environ[FIRST] = str(os.getpid())
        self.fabric.launch()
        del os.environ[FIRST]
        self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=self.settings.timeout))

    @property
    def bare(self) -> bool:
        """Whether a step is what torch alone makes of it, and needs nothing of Fabric's around it."""
        return self.world == 1 and self.settings.precision == "32-true"

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network on the device, with what the precision and the other processes ask for around it."""
        if self.bare:
            return network.to(self.device)
        return self.fabric.setup_module(network)

    def called(self, network: nn.Module, precision: str = "32-true") -> nn.Module:
        """The network as samples are drawn with it: compiled where the training's is, its insides in 16 bits where
        ``precision`` says so; what it returns is in 32."""
        if self.settings.compile and network._compiled_call_impl is None:
            network.compile(dynamic=False)  # one batch size after another, each as fast as it can be
        return network if precision == "32-true" else _InSixteen(network, self.device.type)

    def apart(self, module: nn.Module) -> AbstractContextManager[None]:
        """While a part of a batch is backpropagated after which more is to come: nothing is sent to the others yet."""
        return self.fabric.no_backward_sync(module) if self.world > 1 else nullcontext()  # type: ignore[arg-type]

    def first(self, work: Callable[[], T]) -> T:
        """What ``work()`` on the first process returns, or raises, on every process; the others wait for it."""
        if self.world == 1:
            return work()
        outcome: list[Any] = [None, None]
        raised: Exception | None = None
        if self.rank == 0:
            try:
                outcome[0] = work()
            except Exception as error:
                raised, code = error, 4 if isinstance(error, OSError) else 1
                outcome[1] = str(error), getattr(error, "exit_code", code)  # the others need only know how to end
        dist.broadcast_object_list(outcome, 0, group=self._group)
        if raised is not None:
            raise raised
        if outcome[1] is not None:
            failed = FlowError(outcome[1][0])
            failed.exit_code, failed.echo = outcome[1][1], True
            raise failed
        result: T = outcome[0]
        return result

    def gather(self, mine: T) -> list[T] | None:
        """What every process brings, in the order of ranks, on the first process; None on the others."""
        if self.world == 1:
            return [mine]
        found: list[Any] | None = [None] * self.world if self.rank == 0 else None
        dist.gather_object(mine, found, 0, group=self._group)
        return found

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the processes."""
        return value if self.world == 1 else self.fabric.all_reduce(value, reduce_op="mean")  # type: ignore[return-value]

    def agree(self, flag: int) -> int:
        """The largest ``flag`` of any process, the same on all; one call late where there are several.

        Called once a step, it costs no wait: what was said in the step before has arrived by now.
        """
        if self.world == 1:
            return flag
        said, now = self._said, torch.tensor([flag])
        self._said = dist.all_reduce(now, dist.ReduceOp.MAX, group=self._group, async_op=True), now
        if said is None:
            return 0
        said[0].wait()
        return int(said[1])

    def close(self) -> None:
        """Part from the other processes, after the last thing that is said."""
        if self._group is not None:
            if self._said is not None:
                self._said[0].wait()
            self._group = self._said = None
            with suppress(RuntimeError):
                dist.destroy_process_group()


def _end_with(first: int) -> None:
    """End this process with the one that started it, which may be killed while this one waits to hear from it."""
    while os.getppid() == first:
        time.sleep(1)
    os._exit(1)


def needs_start(settings: EngineSettings) -> bool:
    """Whether the settings ask for several processes and nothing has started them yet."""
    if "LOCAL_RANK" in os.environ or _under_srun():
        return False
    devices = _accelerator(settings)[1] if settings.devices == "auto" else settings.devices
    return (devices if isinstance(devices, int) else len(devices)) * settings.num_nodes > 1


def _accelerator(settings: EngineSettings) -> tuple[str, int]:
    """The accelerator's name, and how many of its devices there are."""
    name = settings.accelerator
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    present = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[name]
    if present == 0:
        raise MachineError(f"engine.accelerator={name}: this machine has none; auto takes what it has")
    return name, present


def _place(settings: EngineSettings) -> tuple[Any, int, ClusterEnvironment]:
    """Devices on this machine, machines, and who started the processes: what torchrun and srun say counts first."""
    if TorchElasticEnvironment.detect():
        local, world = int(os.environ["LOCAL_WORLD_SIZE"]), int(os.environ["WORLD_SIZE"])
        return local, world // local, TorchElasticEnvironment()
    if _under_srun():
        nodes, tasks = int(os.environ.get("SLURM_NNODES", 1)), int(os.environ["SLURM_NTASKS"])
        if tasks % nodes:
            raise UsageError(f"srun started {tasks} processes on {nodes} machines; start as many on each")
        return tasks // nodes, nodes, _Slurm(auto_requeue=False)
    return settings.devices, settings.num_nodes, LightningEnvironment()


class _Slurm(SLURMEnvironment):
    """Fabric's own compares srun's options with its arguments, and refuses --ntasks; here they are read from srun."""

    @staticmethod
    def _validate_srun_variables() -> None:
        pass

    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        pass


def _under_srun() -> bool:
    # SLURM_NTASKS is set in a batch script too, where a command is started once: only srun starts as many
    return "SLURM_STEP_ID" in os.environ and int(os.environ.get("SLURM_NTASKS", 1)) > 1


class _Autocast(MixedPrecision):
    """Autocast decides what is computed in 16 bits. Fabric's own rounds the inputs too, t to three digits with them."""

    def convert_input(self, data: Any) -> Any:
        return data


class _InSixteen(nn.Module):
    def __init__(self, network: nn.Module, device: str) -> None:
        super().__init__()
        self.network, self.device = network, device

    def forward(self, *told: Any) -> Any:
        with torch.autocast(self.device, torch.bfloat16):
            out = self.network(*told)
        return tree_map(lambda leaf: leaf.float() if leaf.dtype == torch.bfloat16 else leaf, out)


def _precision(name: Any, accelerator: str) -> Precision:
    return Precision() if name == "32-true" else _Autocast(name, accelerator)


def _shard(network: nn.Module, mesh: Any) -> nn.Module:
    """Fully sharded data parallelism: each large block by itself, so that one at a time is whole."""
    from torch.distributed.fsdp import fully_shard

    def blocks(module: nn.Module) -> Iterator[nn.Module]:
        for child in module.children():
            if isinstance(child, nn.ModuleList | nn.ModuleDict):  # only hold others, and are never called
                yield from blocks(child)
            elif sum(p.numel() for p in child.parameters()) >= LARGE:
                yield child

    for block in blocks(network):
        fully_shard(block, mesh=mesh["data_parallel"])
    fully_shard(network, mesh=mesh["data_parallel"])
    return network
