#!/usr/bin/env bash
# Makes .venv with limner (editable) and everything its tests need; at once when nothing has changed.
# PYTHON=/path/to/python3.12 chooses the interpreter.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
stamp=$venv/limner-stamp
cpu_index=https://download.pytorch.org/whl/cpu

fail() { echo "setup: $*" >&2; exit 1; }
say() { echo "setup: [${SECONDS}s] $*"; }
is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

# The place is part of the key: a virtual environment does not survive being moved.
key=$( (pwd; cat setup.py constraints.txt pyproject.toml scripts/setup.sh) | cksum)
if [ -x $venv/bin/python ] && [ "$(cat $stamp 2>/dev/null)" = "$key" ]; then
    exit 0
fi
rm -f $stamp

if ! { is_recent $venv/bin/python && $venv/bin/python -m pip --version >/dev/null 2>&1; }; then
    python=
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if is_recent "$candidate"; then python=$candidate; break; fi
    done
    found=$("${PYTHON:-python3}" --version 2>/dev/null) || found="not there"
    [ -n "$python" ] || fail "needs Python 3.11 or later, and ${PYTHON:-python3} is $found;" \
        "install one, or name it: PYTHON=/path/to/python3.12 make"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear $venv || fail "could not make $venv; on Debian and Ubuntu: apt-get install python3-venv"
fi

python=$venv/bin/python
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

# On Linux without a GPU, PyPI's torch brings gigabytes of CUDA: take the CPU build where its index answers.
has_gpu() { [ -e /dev/nvidia0 ] || nvidia-smi -L >/dev/null 2>&1; }
answers() {
    "$python" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=4)' "$1/torch/" 2>/dev/null
}
if [ "$(uname -s)" = Linux ] && ! has_gpu && ! "$python" -c 'import torch' 2>/dev/null; then
    torch=$(sed -n 's/^ *"\(torch[<>=][^"]*\)",$/\1/p' setup.py)
    [ -n "$torch" ] || fail "setup.py names no torch requirement"
    if answers $cpu_index; then
        say "installing the CPU build of $torch"
        pip install --no-compile --constraint constraints.txt --index-url $cpu_index "$torch"
    else
        say "$cpu_index does not answer; torch comes from the default index"
    fi
fi

say "installing limner and its development tools (a few minutes the first time)"
pip install --no-compile --constraint constraints.txt --editable '.[dev]'

# pip would compile every module there is, for half of the time; Python compiles what is imported, and here does it once.
say "compiling what its commands import"
PYTHONDONTWRITEBYTECODE= "$python" - <<'END'
import importlib

from limner.configs.commands import COMMANDS

for home in sorted({command.home.partition(":")[0] for command in COMMANDS.values()}):
    importlib.import_module(f"limner.{home}")

import diffusers, peft, trl, webdataset
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
END
echo "$key" > $stamp
say "done"
