"""Section `launch`: on how many processes and machines a run trains."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tunesmith.section import Section


class LaunchSection(Section):
    """Where a run trains. It changes how long a run takes, not what it learns."""

    launcher: Literal["local", "torchrun"] = "local"
    """`local` trains in the process of the command; `torchrun` starts the processes of one run on this machine and joins those of others."""
    nproc_per_node: int = Field(default=1, ge=1)
    """Processes on each machine: one a GPU. Each takes its share of the rows of every step."""
    nnodes: int = Field(default=1, ge=1)
    """Machines. The others are started by hand or by a scheduler with the command that `tunesmith train` shows; they share the project's folder."""
    rdzv_endpoint: str | None = Field(default=None, pattern=r"^[^\s:]+:\d+$")
    """HOST:PORT at which the machines meet; needed for more than one."""
    fsdp: bool = False
    """Share weights, gradients and optimizer state out among the processes (FSDP2) instead of keeping them whole in each. Strategy `full` only."""

    @property
    def n_processes(self) -> int:
        """Processes in all."""
        return self.nproc_per_node * self.nnodes

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.launcher == "local" and (self.n_processes > 1 or self.fsdp):
            raise ValueError("nproc_per_node, nnodes and fsdp need launcher: torchrun")
        if self.nnodes > 1 and self.rdzv_endpoint is None:
            raise ValueError("nnodes above 1 needs rdzv_endpoint: HOST:PORT")
        return self
