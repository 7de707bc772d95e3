"""Discovery of the app that a command uses, by Flask's rules.

`--app`, `PGCRON_APP` or `FLASK_APP` name it: `module`, `module:name`, `module:factory('argument')` or the path of a
file. Without any of them it is `wsgi.py`, `app.py`, or the only file in this folder that makes a PgCron. A module is
imported by its usual name, so that its tasks have the same names in a worker and in a script.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import re
import stat
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ..app import PgCron
from ..errors import AppNotFound
from ..hints import near_miss

NAMES = ("app", "application")
FACTORIES = ("create_app", "make_app")
USUAL_FILES = ("wsgi", "app")
LARGEST_FILE = 1_000_000


def find_app(given: str | None = None, environ: Mapping[str, str] | None = None) -> PgCron:
    """Return the app that is named, or the one in this folder. Raise `AppNotFound` with the places searched."""
    asked = asked_for(given, environ)
    if asked is not None:
        _make_importable(Path.cwd())
        return _load(*_split(asked))
    found = candidates()
    if not found:
        # The folder is not added to sys.path: a user who may write into it could replace what we import later.
        raise NothingHere(f"there is no app in this folder. {HOW}")
    check_owners(Path.cwd(), found)
    _make_importable(Path.cwd())
    reasons = []
    for module in found:
        try:
            return _load(module, None)
        except NoAppInside as error:
            reasons.append(str(error))
    raise AppNotFound(" ".join([*reasons, HOW]))


HOW = (
    "Say where it is with --app module:name or PGCRON_APP, or call the file app.py;"
    " `pgcron dev --new` writes a small one."
)


class NothingHere(AppNotFound):
    """No app was named, and no file in this folder looks like one."""


class NoAppInside(AppNotFound):
    """The module can be imported, but has no PgCron in it."""


def asked_for(given: str | None = None, environ: Mapping[str, str] | None = None) -> str | None:
    """Return the explicit name of the app, if there is one."""
    env = os.environ if environ is None else environ
    return given or env.get("PGCRON_APP") or env.get("FLASK_APP") or None


def candidates(folder: Path | None = None) -> list[str]:
    """Return the modules in `folder` that may contain the app, for when none is named."""
    here = folder or Path.cwd()
    found = [name for name in USUAL_FILES if (here / f"{name}.py").is_file() or (here / name / "__init__.py").is_file()]
    makers = [path.stem for path in sorted(here.glob("*.py")) if path.stem not in found and _makes_an_app(path)]
    if len(makers) > 1 and not found:
        raise AppNotFound(
            f"several files here make a PgCron: {', '.join(f'{name}.py' for name in makers)}."
            f" Say which one: --app {makers[0]}"
        )
    return [*found, *makers] if len(makers) == 1 else found


def _makes_an_app(path: Path) -> bool:
    """Return True if the source text of a file calls PgCron. Only the text is read: nothing is executed."""
    try:
        # Reading a FIFO would block.
        if not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return False
        text = path.read_text("utf-8", "replace")
    except OSError:
        return False
    return path.stem.isidentifier() and re.search(r"^[^#\n]*\bPgCron\(", text, re.MULTILINE) is not None


def check_owners(folder: Path, modules: Sequence[str]) -> None:
    """Raise `AppNotFound` if another user may have written a module that was found, but not named.

    Completion and `pgcron health` run in any folder, also as root, and an import executes the module.
    """
    files = [folder / f"{name}.py" for name in modules]
    packages = [path for name in modules for path in (folder / name, folder / name / "__init__.py")]
    # Python runs a compiled module from there instead of its source.
    compiled = [place / "__pycache__" for place in (folder, *(folder / name for name in modules))]
    for path in (folder, *files, *packages, *compiled):
        if path.exists() and (trouble := _trouble_with(path)):
            raise AppNotFound(
                f"{str(path)!r} {trouble}, so nothing is imported from this folder without being named. If you trust"
                f" it, name the app: --app {modules[0]} or PGCRON_APP={modules[0]}"
            )


def _trouble_with(path: Path) -> str | None:
    """Return the reason why another user may have written `path`; None if only this user, its group and root can."""
    status = path.stat()
    if status.st_uid not in (os.geteuid(), 0):
        return "belongs to another user"
    # Write access of the group is accepted: on many systems each user has a private group, or shares files by one.
    return "is writable for every user" if status.st_mode & stat.S_IWOTH else None


# From words to a module

def _split(asked: str) -> tuple[str, str | None]:
    """Split `module:name`. A path becomes the name of the module that it would be imported as."""
    # A colon before a slash belongs to a path.
    parts = [part.strip() for part in re.split(r":(?![\\/])", asked, maxsplit=1)]
    place, name = parts[0], parts[1] if len(parts) == 2 else None
    if not place or name == "":
        raise AppNotFound(f"{asked!r} does not name an app; expected module, module:name or path/to/file.py")
    is_path = place.endswith(".py") or os.sep in place or (os.altsep is not None and os.altsep in place)
    return (_module_of(Path(place)) if is_path else place), name


def _module_of(given: Path) -> str:
    """Return the module name of the file `given`, and add the folder of its package to `sys.path`."""
    path = given.resolve()
    if path.is_dir() and (path / "__init__.py").is_file():
        path = path / "__init__.py"
    if not path.is_file():
        raise AppNotFound(f"there is no file {str(given)!r} here, in {str(Path.cwd())!r}")
    if path.suffix != ".py":
        raise AppNotFound(f"{str(given)!r} is not a Python file")
    parts = [] if path.name == "__init__.py" else [path.stem]
    folder = path.parent
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    _make_importable(folder)
    return ".".join(parts)


def _make_importable(folder: Path) -> None:
    if sys.path[:1] != [str(folder)]:
        sys.path.insert(0, str(folder))


def _load(name: str, attribute: str | None) -> PgCron:
    module = _import(name)
    return _the_one_in(module) if attribute is None else _named(module, attribute)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # The module itself is missing only if the error names it or a parent package. Any other name is an import
        # inside the module that failed.
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise AppNotFound(_failure(f"importing {name!r} failed", error)) from error
        near = near_miss(name, (path.stem for path in Path.cwd().glob("*.py")))
        raise AppNotFound(
            f"there is no module {error.name!r}, looked for in {str(Path.cwd())!r} and where Python looks{near or '.'}"
        ) from None
    except (Exception, SystemExit) as error:
        raise AppNotFound(_failure(f"importing {name!r} failed", error)) from error


def _failure(what: str, error: BaseException) -> str:
    """Return one sentence, then the part of the traceback that is in the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "importlib" not in f.filename and f.filename != __file__]
    lines = traceback.format_exception_only(type(error), error)
    shown = "".join([*traceback.format_list(own), *lines]).rstrip()
    return _masked(
        f"{what}: {type(error).__name__}: {error}\n\n{shown}" if own else f"{what}: {''.join(lines).strip()}"
    )


def _masked(text: str) -> str:
    """Return `text` without passwords: a traceback quotes lines of the app, which may contain one."""
    text = re.sub(r"(://)[^\s\"']*@", r"\1***@", text)
    return re.sub(r"(?i)(pass(?:word|wd)?\s*=\s*[\"']?)[^\s\"'&]+", r"\1***", text)


# From a module to an app

def _the_one_in(module: ModuleType) -> PgCron:
    """Return the app in `module` when none is named: `app`, the result of a factory, then the only PgCron there."""
    for name in NAMES:
        found = _as_app(getattr(module, name, None))
        if found is not None:
            return found
    # A factory before a bare PgCron: the factory may still have to connect that PgCron with its Flask app.
    for name in FACTORIES:
        factory = getattr(module, name, None)
        if inspect.isfunction(factory) and _takes_no_arguments(factory):
            found = _as_app(_call(factory, f"{module.__name__}:{name}()"))
            if found is not None:
                return found
    apps = dict(_apps_in(module))
    if len(apps) == 1:
        return next(iter(apps))
    if apps:
        names = sorted(apps.values())
        raise AppNotFound(
            f"module {module.__name__!r} has several apps: {', '.join(names)}. Say which one:"
            f" --app {module.__name__}:{names[0]}"
        )
    raise NoAppInside(f"module {module.__name__!r} has no PgCron in it{_flask_hint(module)}.")


def _apps_in(module: ModuleType) -> Iterator[tuple[PgCron, str]]:
    for name, value in reversed(list(vars(module).items())):
        found = _as_app(value)
        if found is not None:
            yield found, name


def _as_app(value: Any) -> PgCron | None:
    """Return `value` if it is a PgCron, or the PgCron that `init_app` has connected with it; else None."""
    if isinstance(value, PgCron):
        return value
    extensions = getattr(value, "extensions", None) if not isinstance(value, type) else None
    found = extensions.get("pgcron") if isinstance(extensions, dict) else None
    return found if isinstance(found, PgCron) else None


def _flask_hint(module: ModuleType) -> str:
    for name in NAMES:
        if isinstance(getattr(getattr(module, name, None), "extensions", None), dict):
            return f"; its {name!r} is a Flask app without one: cron.init_app({name}) connects them"
    return ""


def _named(module: ModuleType, expression: str) -> PgCron:
    """Return the app that `name`, `name.attribute` or `factory('literal', arguments)` gives in `module`."""
    place = f"{module.__name__}:{expression}"
    try:
        node = ast.parse(expression, mode="eval").body
    except SyntaxError:
        raise _not_understood(expression) from None
    value = _value(module, node.func if isinstance(node, ast.Call) else node, expression)
    if isinstance(node, ast.Call):
        value = _call(value, place, *_literals(node, place))
    elif inspect.isfunction(value):
        value = _call(value, place)
    found = _as_app(value)
    if found is None:
        raise NoAppInside(f"{place} is {value!r}; expected a PgCron, or a Flask app that has one (cron.init_app(app))")
    return found


def _value(module: ModuleType, node: ast.expr, expression: str) -> Any:
    if isinstance(node, ast.Attribute):
        owner: Any = _value(module, node.value, expression)
        name = node.attr
    elif isinstance(node, ast.Name):
        owner, name = module, node.id
    else:
        raise _not_understood(expression)
    try:
        return getattr(owner, name)
    except AttributeError:
        known = [n for n, v in vars(module).items() if _as_app(v) is not None or n in FACTORIES]
        raise AppNotFound(
            f"module {module.__name__!r} has no {name!r}{near_miss(name, known) or '.'}"
            + (f" It has: {', '.join(known)}." if known else "")
        ) from None


def _not_understood(expression: str) -> AppNotFound:
    return AppNotFound(f"{expression!r} is not a name or a call; expected module:name or module:factory('x')")


def _literals(node: ast.Call, place: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        named = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg is not None}
        return [ast.literal_eval(a) for a in node.args], named
    except ValueError:
        raise AppNotFound(f"{place}: the arguments of a factory are literals, such as 'production' or 1") from None


def _call(factory: Any, place: str, args: list[Any] | None = None, named: dict[str, Any] | None = None) -> Any:
    try:
        inspect.signature(factory).bind(*(args or []), **(named or {}))
    except (TypeError, ValueError) as error:
        raise AppNotFound(f"{place} cannot be called like this: {error}") from None
    try:
        return factory(*(args or []), **(named or {}))
    except (Exception, SystemExit) as error:
        raise AppNotFound(_failure(f"calling {place} failed", error)) from error


def _takes_no_arguments(factory: Any) -> bool:
    try:
        inspect.signature(factory).bind()
    except TypeError:
        return False
    return True
