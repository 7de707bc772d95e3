"""Who may import whom: values <- app <- machines <- entrances, and each library in its own corner.

The tables are the rule; to change the rule, change the tables. A name covers what lies below it ("pg" covers
"pg.store"), and the longest name that fits decides.
"""

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LAYERS = {
    "values": {
        "errors", "job", "retry", "schedule", "cron", "field", "pattern", "zone", "words", "moment", "payload",
        "revive", "arguments", "events", "config", "wake", "identity", "plan", "ticks", "crontab", "clock",
        "value",
    },
    "app": {"task", "schedules", "handle", "app", "current", "discover"},
    "machines": {
        "execute", "worker", "haul", "slots", "pace", "ledger", "chores", "report", "reaper", "quarantine", "signals",
        "heart", "supervise", "start", "process", "green", "scheduler", "ping", "shell",
    },
    "memory": {"memory"},
    "pg": {"pg"},
    "package": {"__init__"},
    "embedded": {"embedded"},
    "testing": {"testing"},
    "cli": {"cli", "logs", "reload"},
    "contrib": {"contrib"},
    "contrib with commands": {"contrib.flask"},
    "main": {"__main__"},
}

CORE = {"values", "app", "machines", "memory", "pg", "package"}

# What a layer may import anywhere. Under `if TYPE_CHECKING`, which loads nothing, it may name all of CORE, and the test
# block that an app may stand in.
MAY_IMPORT = {
    "values": {"values"},
    "app": {"values", "app"},
    "machines": {"values", "app", "machines"},
    "memory": {"values", "memory"},
    "pg": {"values", "pg"},
    "package": {"values", "app"},
    "embedded": CORE | {"embedded"},
    "testing": CORE | {"testing", "embedded"},
    "cli": CORE | {"cli", "embedded"},
    "contrib": CORE | {"contrib", "embedded"},
    "contrib with commands": CORE | {"contrib", "contrib with commands", "embedded", "cli"},
    "main": CORE | {"cli", "embedded"},
}

# What a layer may import besides, inside a function: the app opens its store and runs its worker when asked.
MAY_IMPORT_LATE = {
    # Two doors lead right: `PgCron.init_app`, which Flask's convention puts on the extension object, and
    # `PgCron.testing`.
    "app": {"memory", "pg", "machines", "contrib with commands", "testing"},
    # The version, which setup.cfg reads from the package itself.
    "machines": {"package"},
}

# Libraries that have a corner, and the modules that are in it.
CORNERS = {
    "psycopg": {"pg"},
    "gevent": {"__main__", "green"},
    "greenlet": {"__main__", "green"},
    "croniter": {"cron"},
    "click": {"cli", "contrib.flask", "__main__"},
    "flask": {"contrib.flask"},
}

# ... and those that may step in inside a function.
CORNERS_LATE = {
    "psycopg": {"embedded", "testing"},
}


def test_every_module_stands_in_the_table():
    strangers = [module for module in MODULES if layer_of(module) is None]

    assert not strangers, f"add {', '.join(strangers)} to a layer in LAYERS, {Path(__file__).name}"


def test_the_tables_name_the_same_layers():
    assert set(MAY_IMPORT) == set(LAYERS)
    assert set(MAY_IMPORT_LATE) <= set(LAYERS)
    assert set().union(*MAY_IMPORT.values(), *MAY_IMPORT_LATE.values()) <= set(LAYERS)


def test_imports_keep_to_the_tables():
    wrong = [line for module, path in MODULES.items() for line in complaints(module, path.read_text("utf-8"))]

    assert not wrong, "\n".join(["imports go left only:", *wrong])


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("job", "from .app import PgCron", "job:1 (values) imports app (app)"),
        ("job", "def f():\n    from . import app", "job:2 (values) imports app (app)"),
        ("app", "from .pg import store", "app:1 (app) imports pg"),
        ("app", "def f():\n    from . import cli", "app:2 (app) imports cli"),
        ("app", "if TYPE_CHECKING:\n    from . import cli", "app:2 (app) imports cli"),
        ("app", "if TYPE_CHECKING:\n    pass\nelse:\n    from . import pg", "app:4 (app) imports pg"),
        ("worker", "from . import memory", "worker:1 (machines) imports memory (memory)"),
        ("worker", "import pgcron_lite.pg.store", "worker:1 (machines) imports pg.store (pg)"),
        ("worker", "import pgcron_lite", "worker:1 (machines) imports __init__ (package)"),
        ("pg.store", "from .. import worker", "pg.store:1 (pg) imports worker (machines)"),
        ("memory", "from pgcron_lite.pg import store", "memory:1 (memory) imports pg"),
        ("cli.jobs", "from ..contrib import flask", "cli.jobs:1 (cli) imports contrib"),
        ("contrib.sentry", "from ..cli import main", "contrib.sentry:1 (contrib) imports cli (cli)"),
        ("worker", "import psycopg", "worker:1 imports psycopg"),
        ("worker", "import psycopg.rows", "worker:1 imports psycopg"),
        ("embedded", "from psycopg import connect", "embedded:1 imports psycopg"),
        ("execute", "def f():\n    from gevent import Timeout", "execute:2 imports gevent"),
        ("execute", "importlib.import_module('gevent.monkey')", "execute:1 imports gevent"),
        ("app", "from croniter import croniter", "app:1 imports croniter"),
    ],
)
def test_an_import_against_the_rule_is_found(module, source, complaint):
    assert complaint in "\n".join(complaints(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("app", "from . import job\nfrom .task import Task\nimport os"),
        ("app", "def f():\n    from . import pg, worker\n    from .memory import MemoryStore"),
        ("app", "if TYPE_CHECKING:\n    from .pg.store import PostgresStore"),
        ("worker", "from .app import PgCron"),
        ("pg.store", "import psycopg\nfrom psycopg import sql\nfrom . import listen\nfrom ..job import Job"),
        ("embedded", "def f():\n    import psycopg"),
        ("contrib.flask", "import flask\nfrom pgcron_lite import PgCron\nfrom ..cli import jobs"),
        ("__main__", "def main():\n    import gevent.monkey\n    from .cli import main"),
        ("__init__", "from .app import PgCron as PgCron"),
    ],
)
def test_an_import_within_the_rule_is_left_alone(module, source):
    assert complaints(module, source) == []


def test_importing_the_package_loads_no_driver_and_nothing_that_waits():
    program = "import sys, pgcron_lite; print(*sys.modules)"

    run = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)

    assert run.returncode == 0, run.stderr
    assert "pgcron_lite" in run.stdout.split()
    assert not {"psycopg", "gevent", "click", "flask"} & set(run.stdout.split())


# What is below reads imports; the rule is above.

PACKAGE = Path(next(iter(importlib.util.find_spec("pgcron_lite").submodule_search_locations)))


def name_of(path: Path) -> str:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@dataclass
class Import:
    target: str  # as in `import target`
    line: int
    late: bool  # inside a function
    typing: bool  # under `if TYPE_CHECKING`


def complaints(module: str, source: str) -> list[str]:
    found = []
    for imported in imports(ast.parse(source), module):
        top, _, rest = imported.target.partition(".")
        where = f"{module}:{imported.line}"
        if top == "pgcron_lite":
            layer, target, target_layer = layer_of(module), rest or "__init__", layer_of(rest or "__init__")
            if target_layer not in allowed(layer, imported):
                found.append(f"{where} ({layer}) imports {target} ({target_layer})")
        elif top in CORNERS:
            corner = CORNERS[top] | (CORNERS_LATE.get(top, set()) if imported.late else set())
            if not covered(module, corner):
                found.append(f"{where} imports {top}, which only {', '.join(sorted(corner))} may")
    return found


def allowed(layer: str | None, imported: Import) -> set[str]:
    late = MAY_IMPORT_LATE.get(layer, set()) if imported.late else set()
    return MAY_IMPORT.get(layer, set()) | late | (CORE | {"testing"} if imported.typing else set())


def layer_of(module: str) -> str | None:
    fitting = [(name, layer) for layer, names in LAYERS.items() for name in names if covered(module, {name})]
    return max(fitting, key=lambda pair: len(pair[0]))[1] if fitting else None


def covered(module: str, names: set[str]) -> bool:
    return any(module == name or module.startswith(name + ".") for name in names)


def imports(node: ast.AST, module: str, late: bool = False, typing: bool = False) -> Iterator[Import]:
    match node:
        case ast.Import():
            targets = [alias.name for alias in node.names]
        case ast.ImportFrom():
            targets = [target_of(node, alias.name, module) for alias in node.names]
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(target)), *_],
        ):
            targets = [target]
        case _:
            targets = []
    for target in targets:
        yield Import(target, node.lineno, late, typing)
    late = late or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, module, late, typing or is_for_typing(node, child))


def is_for_typing(node: ast.AST, child: ast.AST) -> bool:
    test = isinstance(node, ast.If) and ast.unparse(node.test)
    return test in ("TYPE_CHECKING", "typing.TYPE_CHECKING") and child in node.body


def target_of(node: ast.ImportFrom, name: str, module: str) -> str:
    """What `from x import name` loads: the module of that name if there is one, else `x`."""
    source = node.module or ""
    if node.level:
        here = [] if module == "__init__" else module.split(".")
        is_package = module == "__init__" or (module in MODULES and MODULES[module].name == "__init__.py")
        climb = node.level - 1 if is_package else node.level
        base = here[: len(here) - climb] if climb else here
        source = ".".join(["pgcron_lite", *base, *([node.module] if node.module else [])])
    if source.partition(".")[0] != "pgcron_lite":
        return source
    inside = f"{source}.{name}".partition(".")[2]
    is_module = inside in MODULES or (source == "pgcron_lite" and layer_of(inside))
    return f"{source}.{name}" if is_module else source
