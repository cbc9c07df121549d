"""A KL reference that follows the policy: every so many steps it becomes the policy as it is then."""

from __future__ import annotations

from pathlib import Path

import torch

from ...configs.errors import InputError, reading
from ...models.policy import UnifiedPolicy

FILE = "reference.pth"


@torch.no_grad()
def sync(reference: UnifiedPolicy, policy: UnifiedPolicy) -> None:
    """Gives the reference the weights of a whole policy."""
    reference.model.load_state_dict(policy.model.state_dict())


def save_reference(reference: UnifiedPolicy, checkpoint: Path) -> None:
    """Puts the reference beside a checkpoint's other states; one process must call it."""
    torch.save(reference.model.state_dict(), checkpoint / FILE)


def load_reference(reference: UnifiedPolicy, checkpoint: Path) -> None:
    """What `save_reference` wrote. Raises InputError where nothing did."""
    path = checkpoint / FILE
    if not path.is_file():
        raise InputError(f"{checkpoint}: holds no {FILE}, so the run had no algorithm.reference_sync; leave it out")
    with reading(path):
        reference.model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
