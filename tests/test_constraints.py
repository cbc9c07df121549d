"""constraints.txt: one version that was tested of everything that setup.py asks for, and within its range."""

import re
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]


def test_every_requirement_has_a_tested_version_within_its_range():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    tested = [line.split("==") for line in lines if not line.startswith("#")]
    asked = re.findall(r'"([a-z][a-z0-9_-]*(?:\[\w+\])?[<>][^"]*)"', (ROOT / "setup.py").read_text())
    ranges = [Requirement(words) for words in asked]
    assert len(ranges) > 30 and sorted(name for name, _ in tested) == [name for name, _ in tested]
    versions = {canonicalize_name(name): version for name, version in tested}
    for requirement in ranges:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    assert versions.keys() == {canonicalize_name(requirement.name) for requirement in ranges}
