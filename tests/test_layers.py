"""The house rules a machine can check: who may import whom, where the heavy packages live, how large things get."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BOTTOM = "configs"
LAYERS = ("models", "data", "retrieval", "rewards", "eval", "train", "report", "serve", "worlds", "studies", "cli")
"""A file imports from its own top folder or one further left. `configs` is below all of them."""
FOLDERS = (BOTTOM, *LAYERS)
HOMES = {
    "trl": ("train/trainer.py", "train/inserter/grpo.py", "configs/__init__.py"),
    "webdataset": ("data/shards/writing.py", "data/shards/reading.py", "studies/bench/data.py"),
    "diffusers": ("models/pictures/upstream.py",),
    "peft": ("train/scale/lora.py", "train/scale/sharding.py"),
    "deepspeed": ("train/scale/sharding.py",),
    "huggingface_hub": (
        "models/checkpoints/hub.py",
        "report/release/model_card.py",
        "report/release/publish.py",
        "report/release/check.py",
    ),
    "openai": ("models/chat/endpoint.py",),
    "rouge_score": ("rewards/encoders/text.py",),
    "lancedb": ("retrieval/index/store.py",),
    "starlette": ("serve/api.py", "serve/access.py", "serve/streams.py", "serve/command.py"),
    "uvicorn": ("serve/server.py", "serve/command.py"),
    "sentence_transformers": ("retrieval/index/encoders.py",),
}
WORLDS = ("picture_stories", "insertion_stories", "worlds")
"""What no Python file left of `worlds/` says: a world comes in by the registry, like anybody's plug-in."""
MAX_FILE, MAX_FUNCTION, MAX_ENTRY, MAX_FOLDER = 450, 80, 150, 13
TEXT = (".py", ".yaml", ".toml", ".sh", ".css", ".js")
GENERATED = ("build", "dist", "runs", "shared")


def test_the_house_is_in_order():
    assert not (faults := sorted(all_faults(ROOT))), "\n" + "\n".join(faults)


def test_planted_faults_are_reported(tmp_path):
    planted = {
        "models/a.py": "from ..rewards.base import Reward",
        "models/c.py": "import limner.train.grpo",
        "models/e.py": "from .families.janus import policy",
        "models/families/__init__.py": '"""Families."""',
        "models/families/janus/__init__.py": '"""Janus."""',
        "models/families/janus/policy.py": "from ...e import x",
        "data/a.py": "from ..models.document import X\nfrom ..configs import parse\nfrom .b import y\nimport json\n",
        "data/b.py": "def f():\n    from .. import eval",
        "data/c.py": "from models.document import X",
        "data/d.py": "import rewards.text as text",
        "data/sources/__init__.py": '"""Sources."""',
        "data/sources/a.py": "from ...models.document import X\nfrom ..shards import y\nfrom .b import z\n",
        "data/sources/b.py": "from ...train.losses import x",
        "data/rest/c.py": "x = 1",
        "configs/__init__.py": "from .errors import InputError\nfrom trl import TrlParser\n",
        "configs/a.py": "from ..models.document import X",
        "train/trainer.py": "import trl.trainer\n",
        "train/losses.py": "from trl import GRPOTrainer",
        "train/one.py": "from .two import x",
        "train/two.py": "def f():\n    from .one import y",
        "rewards/a.py": "import diffusers.models as d",
        "rewards/b.py": "NAME = 'picture_stories/image_plan'",
        "rewards/pair_one.py": "",
        "rewards/pair_two.py": "",
        "retrieval/retrieval.py": "",
        "worlds/stories/__init__.py": '"""Stories."""',
        "worlds/stories/a.py": "from ...train.grpo import run\nNAME = 'picture_stories'",
        "worlds/stories/b.py": "from ...studies.seed import say",
        "cli.py": "from .studies import demo\nfrom .train.grpo import main\n",
        "studies/a.py": "from ..cli import main\n",
        "tests/a.py": "from limner.data import a\nfrom data.markdown import b",
        "eval/utils.py": "",
        "eval/long.py": "x = 1\n" * 451,
        "eval/deep.py": "def main():\n" + "    x = 1\n" * 80,
        "train/entry.py": "def main():\n" + "    x = 1\n" * 80,
        "eval/umlaut.py": "# \u00fc",
        "build/lib/models/a.py": "from ..rewards import x",
    } | {f"report/{name}.py": "" for name in "abcdefghijklmn"}
    for name, text in planted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    faults = sorted(all_faults(tmp_path))
    assert Counter(fault.partition(":")[0] for fault in faults) == Counter(
        {
            "models": 1,  # e -> families -> e
            "train": 1,  # one -> two -> one
            "rewards": 1,  # pair_
            "retrieval": 1,  # retrieval/retrieval
            "report": 1,  # too many
            "data/rest": 1,  # no __init__.py
            **dict.fromkeys(("models/a.py", "models/c.py", "data/b.py", "data/c.py", "data/d.py"), 1),
            **dict.fromkeys(("data/sources/b.py", "configs/a.py", "train/losses.py", "rewards/a.py"), 1),
            **dict.fromkeys(("rewards/b.py", "worlds/stories/b.py", "studies/a.py", "tests/a.py"), 1),
            **dict.fromkeys(("eval/utils.py", "eval/long.py", "eval/deep.py", "eval/umlaut.py"), 1),
        }
    ), faults
    assert "models/a.py:1: models may not import rewards.base" in faults


def all_faults(root: Path) -> Iterator[str]:
    """Each broken rule as `file:line: what`, or `folder: what`."""
    imports: dict[str, list[str]] = {}
    for path in source_files(root):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.isascii():
                yield f"{name}:{number}: not ASCII"
        if path.suffix == ".py":
            tree = ast.parse(text, name)
            yield from size_faults(name, text, tree)
            yield from import_faults(name, tree)
            yield from world_faults(name, text)
            imports[name] = [target for node in imports_of(tree) for target in imported(name, node)]
    yield from room_faults(root)
    yield from circles(imports)


def source_files(root: Path) -> Iterator[Path]:
    for top in root.iterdir():
        if top.is_file():
            yield from [top] if top.suffix in TEXT else []
        elif not top.name.startswith(".") and not top.name.endswith(".egg-info") and top.name not in GENERATED:
            yield from (path for path in top.rglob("*") if path.suffix in TEXT and path.is_file())


def size_faults(name: str, text: str, tree: ast.Module) -> Iterator[str]:
    if name.endswith("/utils.py"):
        yield f"{name}: no file is called utils.py"
    if (lines := len(text.splitlines())) > MAX_FILE:
        yield f"{name}: {lines} lines, at most {MAX_FILE}"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            entry = node.name in ("main", "run") and name.startswith(("train/", "studies/"))
            length, most = (node.end_lineno or node.lineno) - node.lineno + 1, MAX_ENTRY if entry else MAX_FUNCTION
            if length > most:
                yield f"{name}:{node.lineno}: {node.name} has {length} lines, at most {most}"


def world_faults(name: str, text: str) -> Iterator[str]:
    folder = name.partition("/")[0]
    if folder in FOLDERS and FOLDERS.index(folder) < FOLDERS.index("worlds"):
        for number, line in enumerate(text.splitlines(), 1):
            if found := [world for world in WORLDS if world in line]:
                yield f"{name}:{number}: names {found[0]}; a world comes in by the registry alone"


def room_faults(root: Path) -> Iterator[str]:
    """Of every folder with Python in it: a room says what is inside, shows a handful of things, and nothing twice."""
    for folder in (root / name for name in FOLDERS if (root / name).is_dir()):
        for room in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
            files = [path.stem for path in room.glob("*.py") if path.stem != "__init__"]
            name, rooms = (
                room.relative_to(root).as_posix(),
                [p for p in room.iterdir() if (p / "__init__.py").is_file()],
            )
            if not files and not rooms:
                continue
            if room != folder and not (room / "__init__.py").is_file():
                yield f"{name}: no __init__.py that says in a line what is inside"
            if (things := len(files) + len(rooms)) > MAX_FOLDER:
                yield f"{name}: {things} files and rooms, at most {MAX_FOLDER}: build a room"
            prefixes = Counter(stem.partition("_")[0] for stem in files if "_" in stem)
            shared = [prefix for prefix, count in prefixes.items() if count + (prefix in files) > 1]
            if shared:
                yield f"{name}: several files begin with {shared[0]}_: build a room"
            if room.name in files:
                yield f"{name}: {room.name}/{room.name}.py says its name twice"


def circles(imports: dict[str, list[str]]) -> Iterator[str]:
    """Of every folder: its files and rooms, each a node, import one way."""
    edges: dict[str, dict[str, set[str]]] = {}
    for name, targets in imports.items():
        here = name.removesuffix(".py").removesuffix("/__init__").split("/")
        for target in targets:
            there = target.split(".")[1:] if target.startswith("limner.") else []
            common = 0
            while common < min(len(here), len(there)) and here[common] == there[common]:
                common += 1
            if 0 < common < min(len(here), len(there)):
                nodes = edges.setdefault("/".join(here[:common]), {})
                nodes.setdefault(here[common], set()).add(there[common])
    for folder, nodes in edges.items():
        if circle := _circle(nodes):
            yield f"{folder}: imports go round: {' -> '.join(circle)}"


def _circle(nodes: dict[str, set[str]]) -> list[str]:
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        for target in sorted(nodes.get(node, ())):
            if found := walk(target, [*path, node]):
                return found
        done.add(node)
        return []

    return next((found for node in sorted(nodes) if (found := walk(node, []))), [])


def imports_of(tree: ast.Module) -> Iterator[ast.Import | ast.ImportFrom]:
    """All but those for types alone, which nothing runs."""
    typing = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in typing:
            yield node


def import_faults(name: str, tree: ast.Module) -> Iterator[str]:
    folder = name.partition("/")[0].removesuffix(".py")
    shipped = folder in FOLDERS or name == "__init__.py"
    for node in ast.walk(tree):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        where = f"{name}:{node.lineno}"
        for target in imported(name, node):
            package, _, module = target.partition(".")
            if package in FOLDERS:
                yield f"{where}: import {target} by its bare folder name; write limner.{target} or a relative import"
            elif shipped and package in HOMES and name not in HOMES[package]:
                yield f"{where}: {package} is imported only in {' and '.join(HOMES[package])}"
            elif shipped and package == "limner":
                if not allowed(folder, module):
                    yield f"{where}: {folder} may not import {module or 'the root'}"
                elif isinstance(node, ast.Import) or not node.level:
                    yield f"{where}: write a relative import for {target}"


def imported(name: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """Full dotted names; a relative import of this package begins with `limner.`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not node.level:
        return [node.module or ""]
    package = ["limner", *name.split("/")[:-1]]
    base = package[: len(package) - node.level + 1]
    if node.module:
        return [".".join([*base, node.module])]
    return [".".join([*base, alias.name]) for alias in node.names]


def allowed(folder: str, module: str) -> bool:
    """May a file of `folder` import `limner.<module>`?"""
    target = module.partition(".")[0]
    return folder in FOLDERS and target in FOLDERS and FOLDERS.index(target) <= FOLDERS.index(folder)
