"""`scripts/ray_serve.py`: the ASGI app as a deployment of Ray Serve."""

import importlib.util
import json
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "ray_serve.py"
ASKED = {
    "model": "demo",
    "stream": True,
    "messages": [{"role": "user", "content": "Illustrate: small red circle top left."}],
}


def started(*options):
    command = [sys.executable, str(SCRIPT), "--model", "demo", "--gpus", "0", "--port", "8799", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_an_answer_is_streamed_through_ray():
    process = started()
    try:
        assert any(line.startswith("serving demo") for line in process.stdout), "it never came up"
        request = urllib.request.Request("http://127.0.0.1:8799/v1/chat/completions", json.dumps(ASKED).encode())
        request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=60) as answer:
            lines = [line for line in answer.read().decode().splitlines() if line]
        assert len(lines) > 5 and lines[-1] == "data: [DONE]" and any("/v1/images/" in line for line in lines)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_says_what_to_install():
    said, _ = started().communicate(timeout=120)
    assert re.search(r"^limner: error: Ray is not installed: pip install", said, re.M), said
    assert "Traceback" not in said
