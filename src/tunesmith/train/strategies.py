"""How a base model learns: full, lora, qlora and prefix, each a plug-in of the seam `strategy`.

    full     every weight; float32 masters, products in the compute dtype (autocast)
    lora     low-rank adapters beside frozen weights, with DoRA, rsLoRA and PiSSA as settings of it
    qlora    the same beside weights in 4 bits (NF4, double quantisation); also on a CPU, where it saves memory and no time
    prefix   keys and values of virtual tokens in front of every prompt, in each layer

A strategy makes a model trainable and says what it needs from the rest: the precision of the base, whether the fast pass
computes it exactly, and its usual learning rate. What it leaves on disk is read again by `models/weights.py`, without it.

Sources: Hu et al. 2022 (LoRA); Dettmers et al. 2023 (QLoRA); Li and Liang 2021 (prefix tuning, started from the activations
of real words); Liu et al. 2024 (DoRA); Kalajdzievski 2023 (rsLoRA); Meng et al. 2024 (PiSSA).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Protocol

import torch
from peft import LoraConfig, PrefixTuningConfig, get_peft_model

from tunesmith import plugins
from tunesmith.errors import ConfigError
from tunesmith.models.encoder import head_of
from tunesmith.models.weights import layer_of
from tunesmith.train.settings import TrainSection


class Strategy(Protocol):
    """Makes a base model trainable.

    Attributes:
        load_in_4bit: Whether the base model is loaded in 4 bits, for training and for every answer afterwards.
        in_float32: Whether the base model is loaded in float32, since its own weights learn.
    """

    load_in_4bit: ClassVar[bool]
    in_float32: ClassVar[bool]

    def __init__(self, section: TrainSection) -> None:
        """Take the section `train`."""

    @property
    def fits_fast_pass(self) -> bool:
        """Whether the fast pass computes exactly what this strategy trains, on a base model that it supports."""

    def prepare(self, model: Any, prefix: Sequence[int] = ()) -> Any:
        """Return the model with what shall be trained, and only that, requiring gradients.

        Args:
            model: The base model; on torch's meta device where only its size is asked for.
            prefix: Token ids that every prompt starts with.

        Raises:
            ConfigError: the settings do not fit the base model.
        """

    def save(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        """Write what was learnt as safetensors.

        Args:
            model: What `prepare` of this same object returned.
            folder: Where to.
            dtype: The compute dtype, in which a whole model is written.
        """


def load_strategy(section: TrainSection) -> Strategy:
    """Return the strategy that the section `train` names.

    Raises:
        ConfigError: there is no such strategy.
    """
    strategy: Strategy = plugins.load("strategy", section.strategy)(section)
    return strategy


class Full:
    """Every weight learns."""

    load_in_4bit, in_float32 = False, True
    fits_fast_pass = False

    def __init__(self, section: TrainSection) -> None:
        self._seed = section.seed

    def prepare(self, model: Any, prefix: Sequence[int] = ()) -> Any:
        """Return the model itself, all of it trainable."""
        torch.manual_seed(self._seed)
        return model.requires_grad_(True)

    def save(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        """Write the whole model as it will answer: in the compute dtype."""
        model.to(dtype).save_pretrained(folder)


class Lora:
    """Low-rank adapters learn."""

    load_in_4bit, in_float32 = False, False

    def __init__(self, section: TrainSection) -> None:
        self._section = section
        self._start: TemporaryDirectory[str] | None = None

    @property
    def fits_fast_pass(self) -> bool:
        """Dropout and DoRA's magnitudes are not in the fast pass, and it needs neither packs, nor a compiler, nor Liger's kernels."""
        section = self._section
        return section.lora_dropout == 0 and not (section.use_dora or section.packing or section.torch_compile or section.use_liger_kernel)

    def prepare(self, model: Any, prefix: Sequence[int] = ()) -> Any:
        """Return a PEFT model; the seed decides its adapters' weights. An encoder's head, which is new, learns whole."""
        section = self._section
        targets: str | list[str] = section.lora_target_modules if isinstance(section.lora_target_modules, str) else list(section.lora_target_modules)
        layers = range(model.config.num_hidden_layers)[-section.lora_layers :] if section.lora_layers else None
        head = head_of(model) if _classifies(model) else []
        if head:  # PEFT knows the layers of some encoders only: each module is named whole
            targets, layers = _inside(model, targets, layers), None
        elif layers is not None and targets == "all-linear":  # PEFT takes layers only with names
            targets = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and ".layers." in name})
        torch.manual_seed(section.seed)
        is_pissa = section.init_lora_weights == "pissa" and model.device.type != "meta"  # where weights are not there, nor are their singular values
        settings = LoraConfig(
            r=section.lora_r,
            lora_alpha=section.lora_alpha,
            lora_dropout=section.lora_dropout,
            target_modules=targets,
            layers_to_transform=list(layers) if layers else None,
            use_dora=section.use_dora,
            use_rslora=section.use_rslora,
            init_lora_weights="pissa" if is_pissa else True,
            modules_to_save=head or None,
            task_type="SEQ_CLS" if head else "CAUSAL_LM",
        )
        try:
            adapted = get_peft_model(model, settings)
        except ValueError as error:
            raise ConfigError(
                f"train.lora_target_modules must name linear modules of the base model. Received: {section.lora_target_modules!r}: {error}"
            ) from error
        # The head is applied at supervised positions only and the embeddings are looked up once: both outside the modules.
        learning = (name for name, parameter in adapted.named_parameters() if parameter.requires_grad)
        outside = sorted(name for name in learning if layer_of(name) is None and not set(name.split(".")) & set(head))
        if outside:
            raise ConfigError(f"train.lora_target_modules must be inside the layers. Received: {section.lora_target_modules!r}, which holds {outside[0]}.")
        if is_pissa:
            self._start = TemporaryDirectory()
            adapted.peft_config["default"].init_lora_weights = True  # read again, these adapters are taken as they are
            adapted.save_pretrained(self._start.name)
            adapted.peft_config["default"].init_lora_weights = "pissa"
        return adapted

    def save(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        """Write a plain LoRA adapter.

        PiSSA takes its adapters out of the base weights. The difference to where they started, an adapter of twice the rank, fits the
        base weights as they came.
        """
        model.save_pretrained(folder, path_initial_model_for_weight_conversion=self._start.name if self._start else None)


def _classifies(model: Any) -> bool:
    return bool(type(model).__name__.endswith("ForSequenceClassification"))


def _inside(model: Any, targets: str | list[str], layers: range | None) -> list[str]:
    """Return the whole names of linear modules inside of an encoder's layers.

    Raises:
        ConfigError: there are none.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and layer_of(name) is not None]
    wanted = [name for name in linear if targets == "all-linear" or name.rpartition(".")[2] in targets]
    chosen = [name for name in wanted if layers is None or layer_of(name) in layers]
    if not chosen:
        known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})) or "none"
        raise ConfigError(f"train.lora_target_modules must name linear modules of the encoder's layers: {known}. Received: {targets!r}.")
    return chosen


class QLora(Lora):
    """Low-rank adapters learn beside weights in 4 bits."""

    load_in_4bit = True

    @property
    def fits_fast_pass(self) -> bool:
        """The fast pass reads weights that are not quantised."""
        return False

    def prepare(self, model: Any, prefix: Sequence[int] = ()) -> Any:
        """Return a PEFT model.

        Raises:
            ConfigError: `init_lora_weights: pissa`, which changes base weights that cannot be changed in 4 bits.
        """
        if self._section.init_lora_weights == "pissa":
            raise ConfigError(
                "train.init_lora_weights: pissa needs base weights that are not quantised. Received: strategy qlora.", hint="Set train.strategy: lora."
            )
        return super().prepare(model, prefix)


class Prefix:
    """Keys and values of virtual tokens learn."""

    load_in_4bit, in_float32 = False, False
    fits_fast_pass = False

    def __init__(self, section: TrainSection) -> None:
        self._section = section

    def prepare(self, model: Any, prefix: Sequence[int] = ()) -> Any:
        """Return a PEFT model whose virtual tokens start as what the base model makes of the prompt's own first tokens."""
        torch.manual_seed(self._section.seed)
        adapted = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=self._section.num_virtual_tokens, task_type="CAUSAL_LM"))
        if prefix and model.device.type != "meta":
            n = self._section.num_virtual_tokens
            ids = [prefix[at % len(prefix)] for at in range(n)]
            with torch.no_grad():
                layers = model(input_ids=torch.tensor([ids], device=model.device), use_cache=True).past_key_values.layers
                # The order in which PEFT reads them: token, layer, keys before values, head.
                started = torch.stack([state[0].transpose(0, 1).reshape(n, -1) for layer in layers for state in (layer.keys, layer.values)], dim=1)
                weight = adapted.prompt_encoder["default"].embedding.weight
                weight.copy_(started.reshape(weight.shape))
        return adapted

    def save(self, model: Any, folder: Path, dtype: torch.dtype) -> None:
        """Write the virtual tokens' keys and values in PEFT's layout."""
        model.save_pretrained(folder)
