"""Who may import whom: values <- app <- machines <- entrances, no circles, and each library in its own corner.

The tables are the rule; to change the rule, change the tables. A name covers what lies below it ("pg" covers
"pg.store"), and the longest name that fits decides.
"""

import ast
import functools
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

LAYERS = {
    "values": {
        "errors", "hints", "checks", "job", "retry", "durations", "clock", "events", "config", "serialization",
        "schedules",
    },
    "app": {
        "app", "declarations", "blueprint", "task", "calls", "handle", "admin", "context", "store", "interfaces",
        "schedules.api",
    },
    # Pings are sent by the scheduler until they are an event receiver.
    "machines": {"worker", "contrib.pings", "contrib.http_post"},
    "memory": {"memory"},
    "pg": {"pg"},
    "package": {"__init__"},
    "embedded": {"embedded"},
    "testing": {"testing"},
    "cli": {"cli"},
    "contrib": {"contrib"},
    "contrib with commands": {"contrib.flask", "contrib.crontab"},
    "main": {"__main__"},
}

CORE = {"values", "app", "machines", "memory", "pg", "package"}

# What a layer may import anywhere.
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

# What a layer may import besides, inside a function or under `if TYPE_CHECKING`: the app opens its store when it is
# first used, and has the doors below.
MAY_IMPORT_LATE = {
    "app": {"memory", "pg", "machines", "contrib with commands", "testing"},
    # The version, which setup.cfg reads from the package itself.
    "machines": {"package"},
}

# The only imports that may close a circle: methods of `PgCron` that users call on their app, and that lead to modules
# which work on an app, and so import it.
DOORS = {
    ("app", "worker.process"): "PgCron.run_worker() runs a worker of the app",
    ("app", "testing.harness"): "PgCron.testing() returns the test block of the app",
    ("app", "contrib.flask"): "PgCron.init_app(), which Flask's convention puts on the extension object",
}

# Libraries that have a corner, and the modules that are in it.
CORNERS = {
    "psycopg": {"pg"},
    "gevent": {"__main__", "worker.gevent_support"},
    "greenlet": {"__main__", "worker.gevent_support"},
    "croniter": {"schedules.cron.parser"},
    "click": {"cli", "contrib.flask", "contrib.crontab.command", "__main__"},
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
        ("job", "if TYPE_CHECKING:\n    from .app import PgCron", "job:2 (values) imports app (app)"),
        ("app", "if TYPE_CHECKING:\n    pass\nelse:\n    from . import pg", "app:4 (app) imports pg"),
        ("worker.loop", "from .. import memory", "worker.loop:1 (machines) imports memory (memory)"),
        ("worker.loop", "import pgcron_lite.pg.store", "worker.loop:1 (machines) imports pg.store (pg)"),
        ("worker.loop", "import pgcron_lite", "worker.loop:1 (machines) imports __init__ (package)"),
        ("pg.store", "from ..worker import loop", "pg.store:1 (pg) imports worker.loop (machines)"),
        ("memory", "from pgcron_lite.pg import store", "memory:1 (memory) imports pg"),
        ("cli.jobs", "from ..contrib import flask", "cli.jobs:1 (cli) imports contrib"),
        ("contrib.sentry", "from ..cli import main", "contrib.sentry:1 (contrib) imports cli (cli)"),
        ("worker.loop", "import psycopg", "worker.loop:1 imports psycopg"),
        ("worker.loop", "import psycopg.rows", "worker.loop:1 imports psycopg"),
        ("embedded", "from psycopg import connect", "embedded:1 imports psycopg"),
        ("worker.execute", "def f():\n    from gevent import Timeout", "worker.execute:2 imports gevent"),
        ("worker.execute", "importlib.import_module('gevent.monkey')", "worker.execute:1 imports gevent"),
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
        ("worker.loop", "from ..app import PgCron"),
        ("pg.store", "import psycopg\nfrom psycopg import sql\nfrom . import listen\nfrom ..job import Job"),
        ("embedded", "def f():\n    import psycopg"),
        ("contrib.flask", "import flask\nfrom pgcron_lite import PgCron\nfrom ..cli import jobs"),
        ("__main__", "def main():\n    import gevent.monkey\n    from .cli import main"),
        ("__init__", "from .app import PgCron as PgCron"),
    ],
)
def test_an_import_within_the_rule_is_left_alone(module, source):
    assert complaints(module, source) == []


def test_no_imports_form_a_circle():
    found = circles({module: targets - doors_of(module) for module, targets in import_graph().items()})

    assert not found, "\n".join(["import circles, those for typing and in functions included:", *map(str, found)])


@pytest.mark.parametrize("door", DOORS)
def test_every_door_is_used_and_would_close_a_circle(door):
    module, target = door
    graph = import_graph()

    assert target in graph[module]
    assert module in reachable(graph, target)


@pytest.mark.parametrize(
    ("graph", "found"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}}, [["a", "b"]]),
        ({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}, [["a", "b", "c"]]),
        ({"a": {"b"}, "b": {"a"}, "c": {"d", "a"}, "d": {"c"}}, [["a", "b"], ["c", "d"]]),
    ],
)
def test_a_circle_is_found(graph, found):
    assert circles(graph) == found


@pytest.mark.parametrize(
    "source",
    [
        "from . import app",
        "from .app import PgCron",
        "import pgcron_lite.app",
        "def f():\n    from .app import PgCron",
        "if TYPE_CHECKING:\n    from .app import PgCron",
        "importlib.import_module('pgcron_lite.app')",
    ],
)
def test_every_kind_of_import_counts_for_a_circle(source):
    assert targets_of("job", source) == {"app"}


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


@functools.cache
def import_graph() -> dict[str, set[str]]:
    """Each module with those it imports, at its top, inside functions and for typing alike."""
    return {module: targets_of(module, path.read_text("utf-8")) for module, path in MODULES.items()}


def targets_of(module: str, source: str) -> set[str]:
    packages = [imported.target.partition(".") for imported in imports(ast.parse(source), module)]
    return {rest or "__init__" for top, _, rest in packages if top == "pgcron_lite"} - {module}


def doors_of(module: str) -> set[str]:
    return {target for source, target in DOORS if source == module}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the strongly connected components of `graph` that have more than one module."""
    reached = {module: reachable(graph, module) for module in graph}
    found = {frozenset(other for other in reached[module] if module in reached[other]) for module in graph}
    return sorted(sorted(circle) for circle in found if circle)


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        new = graph[ahead.pop()] - found
        found |= new
        ahead += new
    return found


def allowed(layer: str | None, imported: Import) -> set[str]:
    late = MAY_IMPORT_LATE.get(layer, set()) if imported.late or imported.typing else set()
    return MAY_IMPORT.get(layer, set()) | late


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
