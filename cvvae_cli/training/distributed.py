"""The processes of a run: one for each device, started by `torchrun`, or one alone.

A batch is named over all processes, and each takes its share of it; so a run means the same on any number of
devices. This module knows no model and no loss.
"""

import os
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

from cvvae_cli.errors import DeviceError

PATIENCE = timedelta(days=1)
"""While one process decodes a large data set into its cache the others wait, longer than torch would by itself."""


@dataclass(frozen=True)
class Processes:
    """Attributes:
    rank, count: this process among all.
    device: what it computes on.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process reports and writes."""
        return self.rank == 0

    def mean(self, x: Tensor) -> Tensor:
        """The mean of a tensor over all processes; `x` itself where there is one."""
        if self.count == 1:
            return x
        total = x.detach().clone()
        dist.all_reduce(total)
        return total / self.count

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.count > 1:
            dist.barrier()


def join_processes(device: torch.device) -> Processes:
    """Join the processes that `torchrun` started, if it did.

    Args:
        device: what was asked for; on CUDA every process takes the card of its local rank.

    Raises:
        DeviceError: there are more processes than cards.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or "RANK" not in os.environ:  # batch systems set the first of them for reasons of their own
        return Processes(0, 1, device)
    if device.type == "cuda":
        card = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        if card >= torch.cuda.device_count():
            found = torch.cuda.device_count()
            raise DeviceError(f"Process {card} has no card, since there are {found}; start as many processes as cards.")
        device = torch.device("cuda", card)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    return Processes(dist.get_rank(), count, device)


def leave_processes(processes: Processes) -> None:
    """Take leave of the others at the end of a run."""
    if processes.count > 1 and dist.is_initialized():
        dist.destroy_process_group()
