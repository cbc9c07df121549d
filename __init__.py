"""limner: unified vision-language models that write and illustrate in one stream.

from limner import load
load("ORG/NAME").write("How do I fold a crane?").save("crane.html")
"""

import importlib
from typing import Any


def __getattr__(name: str) -> Any:
    """`load` is imported when it is asked for: `import limner` itself must stay cheap."""
    if name == "load":
        return importlib.import_module(".models.checkpoints.hub", __name__).load_model
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
