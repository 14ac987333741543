"""What holds for every file: who imports whom, what is imported late, and what never appears."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "nearstep"
MODULES = sorted(SOURCE.rglob("*.py"))

LEAVES = frozenset(
    "cluster contents errors files json_files lock pictures plots precision programs protocols ranges reach rng shapes "
    "version words".split()
)
WORLDS = frozenset({"playground"})
LIBRARY = (
    LEAVES | WORLDS | set("flow nets losses rollout models data stream sampling train evaluate cost recipes".split())
)
MAY_IMPORT = {
    **dict.fromkeys(LEAVES, LEAVES),
    "flow": LEAVES,
    "nets": LEAVES,
    "losses": LEAVES - {"rng"} | {"flow"},  # a loss does not sample
    "rollout": LEAVES | {"flow", "nets.cache"},
    "models": LEAVES | {"flow", "nets"},
    **dict.fromkeys(WORLDS, LEAVES),
    "data": LEAVES,
    "stream": LEAVES | {"models", "rollout", "flow", "nets"},
    "sampling": LEAVES | {"stream", "models", "nets", "data"},
    "train": LEAVES | {"models", "rollout", "losses", "flow", "nets", "data"},
    "evaluate": LEAVES | {"stream", "models", "rollout", "flow", "data"},
    "cost": LEAVES | {"stream", "train", "models", "rollout", "nets", "flow", "data"},
    "study": LEAVES | {"stream", "evaluate", "data"},
    "server": LEAVES | {"stream", "models", "nets", "data", "study"},
    "recipes": LIBRARY - {"cost"},
    "cli": LIBRARY | {"server", "study"},
    "__init__": LIBRARY,
}
"""A package or module of nearstep -> what it may import besides itself."""

HEAVY = frozenset({"torch", "diffusers", "transformers", "av", "tensorboard", "matplotlib"})
"""Not loaded before they are needed: `nearstep --help` answers at once."""

OPTIONAL = frozenset(
    {
        *("matplotlib", "peft", "tensorboard", "prometheus_client", "ray", "starlette", "uvicorn", "websockets"),
        *("choix", "krippendorff"),
    }
)
"""Behind an extra, so each is imported in one place only: a file, or the package that cannot do without."""

DISTRIBUTED = {"train/parallel.py", "train/checkpoint.py", "train/reading.py"}
MOST_LINES = 400
PICKLES = {".pt", ".pth", ".pkl", ".ckpt"}
MACHINE_PATH = re.compile(r"(?<![\w.$}/-])/(?:home|root|Users|mnt|scratch|tmp|work)/\w")
GLOBAL_DRAWS = frozenset(
    "rand randn randint randperm rand_like randn_like randint_like normal bernoulli multinomial".split()
)


def inside(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def each_module(*folders: str) -> pytest.MarkDecorator:
    """One case per module, of the named packages or of all."""
    chosen = [path for path in MODULES if not folders or inside(path).split("/")[0] in folders]
    return pytest.mark.parametrize("path", chosen, ids=inside)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(nodes: Iterator[ast.AST], path: Path) -> Iterator[str]:
    """Dotted names that the import statements among `nodes` bring in, relative ones resolved."""
    package = ("nearstep", *path.relative_to(SOURCE).parent.parts)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join((*above, *([node.module] if node.module else [])))
            yield from (f"{base}.{alias.name}" for alias in node.names)


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: not those of functions, nor under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from at_module_level(child)


def tops(names: Iterator[str]) -> set[str]:
    """Top-level packages of dotted names; torch's tensorboard writer counts as tensorboard."""
    return {"tensorboard" if name.startswith("torch.utils.tensorboard") else name.split(".")[0] for name in names}


@each_module()
def test_imports_go_one_way(path: Path) -> None:
    home = inside(path).removesuffix(".py").split("/")[0]
    allowed = MAY_IMPORT[home] | {home}
    for name in imported(ast.walk(tree_of(path)), path):
        if name.startswith("nearstep."):
            target = name.removeprefix("nearstep.") + "."
            assert any(target.startswith(f"{row}.") for row in allowed), f"{home} may not import {name}"


def test_no_module_imports_itself_by_way_of_others() -> None:
    """Imports for type checking alone count: two files that need each other's types are one idea cut in two."""
    names = {".".join(("nearstep", *Path(inside(path)).with_suffix("").parts)): path for path in MODULES}
    names = {name.removesuffix(".__init__"): path for name, path in names.items()}
    arrows: dict[str, set[str]] = {}
    for name, path in names.items():
        targets = {
            each if each in names else each.rpartition(".")[0] for each in imported(ast.walk(tree_of(path)), path)
        }
        arrows[name] = (targets & names.keys()) - {name}
    while leaves := {name for name, targets in arrows.items() if not targets}:
        arrows = {name: targets - leaves for name, targets in arrows.items() if name not in leaves}
    assert not arrows, f"a circle among {sorted(arrows)}"


BORROWED = frozenset(
    "_all_hooks _asdict _cached_conv_counts _dynamo _exit _fields _foreach_lerp_ _gradient_checkpointing_func "
    "_is_mkldnn_bf16_supported _keep_in_fp32_modules _parameters _replace _scaled_mm".split()
)
"""Names of torch, diffusers and Python that begin with an underscore and are meant to be used, or cannot be avoided."""


@each_module()
def test_privates_stay_with_their_object(path: Path) -> None:
    for node in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)):
        private = node.attr.startswith("_") and not node.attr.startswith("__")
        owner = ast.unparse(node.value)
        if private and node.attr not in BORROWED and owner not in {"self", "cls", "super()", "aten"}:
            pytest.fail(f"line {node.lineno}: {owner}.{node.attr}")
        assert node.attr != "__new__", f"line {node.lineno}: an object is made by its class"


OPEN = {
    "cost/clock.py": "stands in for any callable",
    "cost/flops.py": "takes any module",
    "files.py": "takes anything that JSON can hold",
    "nets/codec.py": "hands diffusers' options on",
    "nets/text.py": "hands transformers' options on",
    "stream/model.py": "hands diffusers' options on",
    "train/checkpoint.py": "torch's states",
    "train/loop.py": "any dataclass",
}
"""Files whose public functions take Any, and why."""


@each_module()
def test_public_functions_say_what_they_take(path: Path) -> None:
    if inside(path) in OPEN:
        return
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            arguments = node.args
            every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            every += [each for each in (arguments.vararg, arguments.kwarg) if each]
            loose = [each.arg for each in every if each.annotation and ast.unparse(each.annotation) == "Any"]
            assert not loose, f"{node.name} takes Any: {', '.join(loose)}"


@each_module()
def test_distribution_stays_in_its_two_files(path: Path) -> None:
    names = set(imported(ast.walk(tree_of(path)), path))
    names |= {ast.unparse(node) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Attribute)}
    assert inside(path) in DISTRIBUTED or not {name for name in names if name.startswith("torch.distributed")}


@each_module("cli", "__init__.py")
def test_the_command_line_imports_heavy_packages_late(path: Path) -> None:
    assert not tops(imported(at_module_level(tree_of(path)), path)) & HEAVY


@pytest.mark.parametrize("package", sorted(OPTIONAL))
def test_an_optional_dependency_has_one_home(package: str) -> None:
    homes = [inside(path) for path in MODULES if package in tops(imported(ast.walk(tree_of(path)), path))]
    if package == "ray":  # its web server is used where ours is
        homes.remove("server/replicas.py")
    assert len({"server" if home.startswith("server/") else home for home in homes}) <= 1


@each_module()
def test_nothing_forbidden(path: Path) -> None:
    tree = tree_of(path)
    assert "torchvision" not in tops(imported(ast.walk(tree), path)), "it breaks the import of transformers"
    words = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    words |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert "nan_to_num" not in words, "a non-finite value stops the run"
    assert "print" not in words or inside(path).startswith("cli/"), "a library does not print"


@each_module("flow", "losses", "rollout", "data", "train", "stream", "evaluate", "recipes")
def test_draws_name_their_generator(path: Path) -> None:
    for call in (node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)):
        owner, _, name = ast.unparse(call.func).rpartition(".")
        if owner in {"torch", "np.random", "numpy.random"} and name in GLOBAL_DRAWS:
            assert any(keyword.arg == "generator" for keyword in call.keywords), f"line {call.lineno}: {name}"


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))], ids=str)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@cache
def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [path for name in listing.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_machine_paths_in_git() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [f"{path.relative_to(ROOT)}: {match.group()}" for match in MACHINE_PATH.finditer(text)]
    assert not found


def test_no_pickles_in_git() -> None:
    assert not [path for path in tracked() if path.suffix in PICKLES]
