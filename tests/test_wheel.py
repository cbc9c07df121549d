"""The wheel, built from a copy and installed where the checkout cannot be seen."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configs", "models", "data", "retrieval", "rewards", "eval", "train", "report", "serve", "worlds", "studies")
SHIPPED = (".py", ".yaml", ".css", ".js", ".html", ".txt", ".json", ".safetensors", ".png")
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "runs", "shared", "*.egg-info", "__pycache__")
PLUGIN = {
    "pyproject.toml": """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "my-plugin"
version = "1"
[project.entry-points."limner.plugins"]
mine = "my_plugin"
""",
    "my_plugin/__init__.py": '"""A package with a reward."""',
    "my_plugin/rewards.py": """
from limner.configs.registry import register


@register("reward", "mine/brevity")
class Brevity:
    \"\"\"Short answers.\"\"\"

    def __init__(self, words: int = 80):
        self.words = words

    def __call__(self, completions):
        return [0.5 for _ in completions]
""",
}
"""A package with a wheel of its own."""
RESOLVE = """
import limner, limner.configs as configs
print(limner.__file__)
print(*(configs.find_config(name) for name in configs.packaged_names()), sep="\\n")
"""


@pytest.mark.slow
def test_wheel_runs_without_the_checkout(tmp_path):
    source, elsewhere, home = tmp_path / "source", tmp_path / "elsewhere", tmp_path / "clean"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)  # a build in place would ship what an earlier one left in build/
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    call([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source], cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in shipped if ".dist-info" not in name.split("/")[0]} == {"limner"}
    assert not {name.split("/")[1] for name in shipped} & {"setup.py", "tests", "scripts", "docs"}
    for path in source.rglob("*"):
        name = path.relative_to(source).as_posix()
        if name.partition("/")[0] in FOLDERS and path.suffix in SHIPPED:
            assert f"limner/{name}" in shipped, f"{name} is not in the wheel"

    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    call([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel], cwd=tmp_path)
    # Only now the libraries of this environment (torch among them), or pip would take the editable limner for its own.
    # A path in a .pth file is searched, but the .pth files in it, the editable install's too, are not followed.
    local = Path(sysconfig.get_path("purelib", vars={"base": str(home)}))
    (local / "libraries.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")

    elsewhere.mkdir()
    limner = home / "bin" / "limner"
    assert "usage: limner" in call([limner, "--help"], cwd=elsewhere)
    call(
        [
            limner,
            "generate",
            "--model",
            "demo",
            "--prompt",
            "Illustrate: small red circle top left.",
            "--out",
            "a.html",
        ],
        cwd=elsewhere,
    )
    assert "data:image/png" in (elsewhere / "a.html").read_text()
    assert "--new_model.layers" in call([limner, "warmup", "--help"], cwd=elsewhere)
    named = {row["name"] for row in json.loads(call([limner, "list", "reward", "--json"], cwd=elsewhere))}
    assert {"format", "judge/TEMPLATE", "picture_stories/text_plan"} <= named and "mine/brevity" not in named

    plugin = tmp_path / "plugin"
    for name, text in PLUGIN.items():
        (plugin / name).parent.mkdir(parents=True, exist_ok=True)
        (plugin / name).write_text(text)
    call([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", plugin, plugin], cwd=tmp_path)
    call([*pip, "--python", python, "install", "--no-deps", "--no-index", *plugin.glob("*.whl")], cwd=tmp_path)
    rows = {row["name"]: row for row in json.loads(call([limner, "list", "reward", "--json"], cwd=elsewhere))}
    assert named < {*rows} and rows["mine/brevity"]["does"] == "Short answers."
    (option,) = rows["mine/brevity"]["options"]
    assert (option["name"], option["default"]) == ("words", 80)

    origin, *found = call([python, "-c", RESOLVE], cwd=elsewhere).split()
    assert Path(origin).is_relative_to(local), f"limner came from {origin}"
    assert found and all(Path(path).is_relative_to(local) for path in found)


def call(command: list, cwd: Path) -> str:
    """Standard output of a command that must succeed, run without this process's Python settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
