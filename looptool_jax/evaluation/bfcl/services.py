"""The simulated services of BFCL's multi-turn rows, from the user's copy of bfcl-eval, and calls to them.

Nothing of them comes with the program. Their files are loaded one by one: the package itself would bring a hundred
others. A call is looked up in a table of the methods that the function documents name; its arguments are literals, read
and never evaluated. (The released evaluation evaluates a text that is put together from what the model wrote: names of
Python's own and expressions run there and are errors here; in strings it takes white space before brackets away, which
no label has.)
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from looptool_jax.data.benchmarks import json_lines
from looptool_jax.data.store import DataError
from looptool_jax.evaluation.bfcl.data import PACKAGE, REMEDY, data_folder
from looptool_jax.toolcall import Call

FILES = {
    "GorillaFileSystem": "gorilla_file_system",
    "MathAPI": "math_api",
    "MessageAPI": "message_api",
    "TwitterAPI": "posting_api",
    "TicketAPI": "ticket_api",
    "TradingBot": "trading_bot",
    "TravelAPI": "travel_booking",
    "VehicleControlAPI": "vehicle_control",
}
_SOURCES = "eval_checker/multi_turn_eval/func_source_code"
_TEXTS = "long_context"  # what the services fill long contexts with
_STATELESS = ("MathAPI",)
_ABSENT = object()


def load_service(folder: Path, name: str) -> type:
    """A service's class, from the package around the data `folder` or the installed one.

    Raises DataError naming what is missing and how to install it.
    """
    sources = _sources(folder)
    prefix = ".".join((PACKAGE, *_SOURCES.split("/")))
    shared = f"{prefix}.{_TEXTS}"
    before = sys.modules.get(shared)
    try:
        sys.modules[shared] = _load(sources / f"{_TEXTS}.py", shared)
        return getattr(_load(sources / f"{FILES[name]}.py", f"{prefix}.{FILES[name]}"), name)
    except ModuleNotFoundError as error:
        raise DataError(f"BFCL's {name} needs the package {error.name}: pip install 'looptool-jax[bfcl]'") from None
    except (AttributeError, ImportError, SyntaxError) as error:
        raise DataError(f"{sources}: not the services of bfcl-eval 2026.3.23 ({error})") from None
    finally:
        sys.modules.pop(shared, None)
        if before is not None:
            sys.modules[shared] = before


def service_files(folder: Path) -> list[Path]:
    """The sources and documents of all services, as far as they are there."""
    sources = _sources(folder)
    return sorted([*sources.glob("*.py"), *folder.glob("multi_turn_func_doc/*.json")])


def _sources(folder: Path) -> Path:
    """The services' files, from the package around the data `folder` or the installed one. Raises DataError."""
    around = folder.parent / _SOURCES
    return around if around.is_dir() else data_folder(None).parent / _SOURCES


def _load(file: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None or not file.is_file():
        raise DataError(
            f"{file}: no such file; multi-turn rows need BFCL's services: pip install --no-deps bfcl-eval==2026.3.23"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_documents(folder: Path, service: str) -> list[Any]:
    """The function documents of a service. Raises DataError naming file and line."""
    file = folder / "multi_turn_func_doc" / f"{FILES[service]}.json"
    if not file.is_file():
        raise DataError(f"{file}: no such file; it has the documents of {service}")
    return [document for _, document in json_lines(file, REMEDY)]


class Session:
    """Services of one row at its start, and the methods that can be called.

    services: classes by name. config: the row's first state of each. functions: the documented names; no other method
    can be called.
    """

    def __init__(
        self, services: Mapping[str, type], config: Mapping[str, Any], functions: Collection[str], long_context: bool
    ) -> None:
        self.instances: dict[str, Any] = {}
        self.methods: dict[str, Callable[..., Any]] = {}
        for service, class_ in services.items():
            instance = class_()
            if service not in _STATELESS:
                instance._load_scenario(copy.deepcopy(config.get(service, {})), long_context=long_context)
            self.instances[service] = instance
            methods = {name: getattr(instance, name, None) for name in functions}
            self.methods |= {name: method for name, method in methods.items() if callable(method)}

    def call(self, call: Call, hidden: Collection[str] = ()) -> str:
        """What the service replies; of a call that fails, the error. hidden: functions that are not there yet."""
        if call.name in hidden:
            return _error(_unknown(call.name))
        return self._reply(call.name, (), call.arguments)

    def run(self, text: str) -> str:
        """What the service replies to a call as the released evaluation writes it, `name(key=literal, ...)`."""
        try:
            tree = ast.parse(text.lstrip(" \t"), "<string>", "eval").body
            if not isinstance(tree, ast.Call):
                raise ValueError("not a call")
            if not isinstance(tree.func, ast.Name):
                roots = (node.id for node in ast.walk(tree.func) if isinstance(node, ast.Name))
                raise _unknown(next(roots, "?"))
            arguments = {keyword.arg: _literal(keyword.value) for keyword in tree.keywords if keyword.arg}
            if len(arguments) < len(tree.keywords):
                raise ValueError("not literal arguments")
            return self._reply(tree.func.id, [_literal(value) for value in tree.args], arguments)
        except Exception as error:  # whatever the text is
            return _error(error)

    def _reply(self, name: str, positional: Sequence[Any], arguments: Mapping[str, Any]) -> str:
        try:
            if name not in self.methods:
                raise _unknown(name)
            value = self.methods[name](*positional, **arguments)
            if type(value) is str:
                return value
            if type(value) is not dict:
                return str(value)
            try:
                return json.dumps(value)
            except (TypeError, ValueError):
                return str(value)
        except Exception as error:  # the services raise what they like
            return _error(error)


def different_state(session: Session, other: Session) -> str:
    """The first service whose public attributes differ from those of the other session, "" if none does."""
    for service, wanted in other.instances.items():
        found = session.instances[service]
        for key, value in vars(wanted).items():
            if not key.startswith("_") and getattr(found, key, _ABSENT) != value:
                return f"{service}.{key}"
    return ""


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Name):
        raise _unknown(node.id)
    return ast.literal_eval(node)


def _unknown(name: str) -> NameError:
    return NameError(f"name '{name}' is not defined")


def _error(error: Exception) -> str:
    return f"Error during execution: {error}"
