"""The house rules a machine can check: who may import whom, where the heavy packages live, how long things get."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ("models", "data", "retrieval", "rewards", "eval", "train", "report", "serve", "studies", "cli")
"""A file imports from its own folder or one further left."""
FOLDERS = (*LAYERS, "configs")
"""`configs` is below all of them: any file may import it, and it imports `models.errors` and `models.redaction`."""
HOMES = {
    "trl": ("train/trainer.py", "train/inserter/grpo.py", "configs/__init__.py"),
    "webdataset": ("data/shards.py",),
    "diffusers": ("models/pictures/contract.py",),
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
    "sentence_transformers": ("retrieval/index/encoders.py",),
}
MAX_FILE, MAX_FUNCTION, MAX_ENTRY = 450, 80, 150
TEXT = (".py", ".yaml", ".toml", ".sh", ".css", ".js")
GENERATED = ("build", "dist", "runs", "shared")


def test_the_house_is_in_order():
    assert not (faults := sorted(all_faults(ROOT))), "\n" + "\n".join(faults)


def test_planted_faults_are_reported(tmp_path):
    planted = {
        "models/a.py": "from ..rewards.base import Reward",
        "models/b.py": "from . import a",
        "models/c.py": "import limner.train.grpo",
        "data/a.py": "from ..models.document import X\nfrom ..configs import parse\nfrom .b import y\nimport json\n",
        "data/b.py": "def f():\n    from .. import eval",
        "data/c.py": "from models.document import X",
        "data/d.py": "import rewards.text as text",
        "data/sources/a.py": "from ...models.document import X\nfrom ..shards import y\nfrom .b import z\n",
        "data/sources/b.py": "from ...train.losses import x",
        "configs/__init__.py": "from ..models.errors import InputError\nfrom trl import TrlParser\n",
        "configs/a.py": "from ..models.document import X",
        "train/trainer.py": "import trl.trainer\n",
        "train/objective/losses.py": "from trl import GRPOTrainer",
        "rewards/a.py": "import diffusers.models as d",
        "cli.py": "from .studies import demo\nfrom .train.grpo import main\n",
        "studies/a.py": "from ..cli import main",
        "tests/a.py": "from limner.data import a\nfrom data.markdown import b",
        "eval/utils.py": "",
        "eval/long.py": "x = 1\n" * 451,
        "eval/deep.py": "def main():\n" + "    x = 1\n" * 80,
        "train/entry.py": "def main():\n" + "    x = 1\n" * 80,
        "eval/umlaut.py": "# \u00fc",
        "build/lib/models/a.py": "from ..rewards import x",
    }
    for name, text in planted.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    clean = ("data/a.py", "data/sources/a.py", "configs/__init__.py", "train/trainer.py", "cli.py", "train/entry.py")
    expected = {name for name in planted if name not in clean and not name.startswith("build")}
    faults = list(all_faults(tmp_path))
    assert {fault.partition(":")[0] for fault in faults} == expected, faults
    assert "models/a.py:1: models may not import rewards.base" in faults


def all_faults(root: Path) -> Iterator[str]:
    """Each broken rule as `file:line: what`."""
    for path in source_files(root):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        for number, line in enumerate(text.splitlines(), 1):
            if not line.isascii():
                yield f"{name}:{number}: not ASCII"
        if path.suffix == ".py":
            tree = ast.parse(text, name)
            yield from size_faults(name, text, tree)
            yield from import_faults(name, tree)


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
        sibling = isinstance(node, ast.ImportFrom) and node.level == 1 and node.module and "." not in node.module
        relative = isinstance(node, ast.ImportFrom) and node.level
        if folder == "models" and relative and allowed(folder, "models") and not sibling:
            yield f"{where}: in models/ write `from .sibling import Name` (the Hub's loader follows nothing else)"


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
    if folder == target:
        return True
    if folder == "configs":
        return module in ("models.errors", "models.redaction")
    if target == "configs":
        return folder in FOLDERS
    return folder in LAYERS and target in LAYERS and LAYERS.index(target) < LAYERS.index(folder)
