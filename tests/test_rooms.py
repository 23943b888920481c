"""Claims about the house: imports go down, never up, and never in a circle."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[1] / "jtasks"
# The rooms from the ground up; a module may import from its own floor and from those below it.
FLOORS = (
    ("errors", "tree", "shipped"),
    ("writing", "ranges", "console", "python_files"),
    ("storage", "overrides", "flags", "ops", "schema", "variants"),
    ("metrics", "optim"),
    ("task",),
    ("faults", "distributed"),
    ("config_files",),
    ("config",),
    ("data",),
    ("models", "interop", "environment"),
    ("tasks", "run"),
    ("testing", "sweep"),
    ("modes",),
    ("cli",),
    ("__main__",),
)


def imports():
    """Each module of the package and the modules of the package that it imports, wherever in its text."""
    names = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in ROOT.rglob("*.py")}
    modules = {name.removesuffix("__init__").rstrip("."): path for path, name in names.items()}
    modules = {name: path for name, path in modules.items() if name and not name.startswith("configs")}
    graph = {}
    for name, path in modules.items():
        others = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("jtasks."):
                package = node.module.removeprefix("jtasks").lstrip(".")
                members = [f"{package}.{alias.name}".lstrip(".") for alias in node.names]
                others |= {member if member in modules else package for member in members}
            elif isinstance(node, ast.Import):
                others |= {a.name.removeprefix("jtasks.") for a in node.names if a.name.startswith("jtasks.")}
        graph[name] = others - {name, ""}
    return graph


def room(module):
    return module.partition(".")[0]


def floor(module):
    return next(i for i, rooms in enumerate(FLOORS) if room(module) in rooms)


def test_no_import_goes_up():
    upwards = [(a, b) for a, others in imports().items() for b in others if floor(b) > floor(a)]
    assert not upwards


def test_tasks_and_the_engine_do_not_know_each_other():
    pairs = {(room(a), room(b)) for a, others in imports().items() for b in others}
    assert not {("tasks", "run"), ("run", "tasks")} & pairs


def test_a_task_imports_no_other_task():
    crossing = [(a, b) for a, others in imports().items() for b in others if room(a) == room(b) == "tasks"]
    assert not crossing


def test_no_import_goes_in_a_circle():
    graph = imports()
    done, path = set(), []

    def visit(module):
        assert module not in path, f"a circle: {' -> '.join([*path[path.index(module) :], module])}"
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            visit(other)
        done.add(path.pop())

    for module in sorted(graph):
        visit(module)


def test_only_models_import_flax():
    assert {path.parent.name for path in ROOT.rglob("*.py") if "import flax" in path.read_text()} == {"models"}
