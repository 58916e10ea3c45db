"""AdamW with a learning rate that is a function of the step, so that there is no schedule to save.

Weight decay is on matrices only, not on biases, norms or other vectors. LoRA's B may learn faster than its A (LoRA+, Hayou et
al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tunesmith.train.processes import placed_like, whole
from tunesmith.train.settings import TrainSection

_STATE = ("step", "exp_avg", "exp_avg_sq")


class Optimizer:
    """Changes the parameters of one run.

    Args:
        named: Name -> parameter, in a fixed order.
        section: The section `train`.
        n_steps: Steps of the whole run.
    """

    def __init__(self, named: Mapping[str, Tensor], section: TrainSection, n_steps: int) -> None:
        self._named, self._section, self._n_steps = named, section, n_steps
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for name, parameter in named.items():
            decay = section.weight_decay if parameter.ndim > 1 else 0.0
            rate = section.learning_rate * (section.loraplus_lr_ratio if "lora_B" in name else 1)
            groups.setdefault((rate, decay), []).append(parameter)
        self._rates = [rate for rate, _ in groups]
        self._adamw = torch.optim.AdamW([{"params": parameters, "lr": rate, "weight_decay": decay} for (rate, decay), parameters in groups.items()], fused=True)

    def step(self, number: int) -> tuple[float, float]:
        """Change the parameters by their gradients, which are then dropped.

        Args:
            number: Steps that were done before.

        Returns:
            The learning rate, and the norm that the gradients had before they were scaled down to `max_grad_norm`.
        """
        norm = torch.nn.utils.clip_grad_norm_(list(self._named.values()), self._section.max_grad_norm)
        factor = rate_factor(number, self._n_steps, self._section)
        for group, rate in zip(self._adamw.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        self._adamw.step()
        self._adamw.zero_grad()
        return self._section.learning_rate * factor, float(whole(norm))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as named tensors; empty before the first step."""
        return {f"{key}.{name}": whole(self._adamw.state[p][key]) for name, p in self._named.items() if p in self._adamw.state for key in _STATE}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` returned."""
        for name, parameter in self._named.items():
            if f"step.{name}" in tensors:
                self._adamw.state[parameter] = {key: placed_like(parameter, tensors[f"{key}.{name}"]) for key in _STATE}


def rate_factor(number: int, n_steps: int, section: TrainSection) -> float:
    """Return what the peak learning rate is multiplied by in the step after `number` steps, as transformers' schedules do."""
    warmup = math.ceil(section.warmup_ratio * n_steps)
    if number < warmup:
        return number / warmup
    left = (n_steps - number) / max(1, n_steps - warmup)
    match section.lr_scheduler_type:
        case "constant":
            return 1.0
        case "linear":
            return left
        case _:
            return 0.5 * (1 + math.cos(math.pi * (1 - left)))
