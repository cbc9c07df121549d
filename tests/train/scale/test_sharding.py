"""Set-ups that are refused; those that train are in `test_setups.py`."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from limner.configs.errors import InputError
from limner.train.scale.sharding import check_setup


def accelerator(kind: DistributedType, deepspeed=None, fsdp=None):
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(deepspeed_plugin=deepspeed, fsdp_plugin=fsdp))


def fsdp2(**changes):
    values = {"fsdp_version": 2, "cpu_ram_efficient_loading": False, "mixed_precision_policy": None, **changes}
    return accelerator(DistributedType.FSDP, fsdp=SimpleNamespace(**values))


def zero(stage: int, **options):
    plugin = SimpleNamespace(zero_stage=stage, deepspeed_config={"zero_optimization": options})
    return accelerator(DistributedType.DEEPSPEED, plugin)


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (zero(3), "zero3_save_16bit_model: true"),
        (fsdp2(fsdp_version=1), "fsdp_version: 1"),
        (fsdp2(cpu_ram_efficient_loading=True), "fsdp_cpu_ram_efficient_loading"),
    ],
)
def test_a_setup_that_would_go_wrong_is_refused(setup, message):
    with pytest.raises(InputError, match=message):
        check_setup(setup)


def test_fsdp_that_would_silently_be_something_else_is_refused(monkeypatch):
    """On a CPU accelerate takes no notice of the file of its own launcher."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    check_setup(fsdp2())
    for kind in (DistributedType.MULTI_CPU, DistributedType.NO):
        with pytest.raises(InputError, match="FSDP was asked for"):
            check_setup(accelerator(kind))


def test_others_pass_and_log_probs_stay_in_float32():
    bfloat16 = torch.bfloat16
    setup = fsdp2(mixed_precision_policy=MixedPrecisionPolicy(bfloat16, bfloat16, bfloat16))
    for passes in (setup, fsdp2(), zero(2), zero(3, stage3_gather_16bit_weights_on_model_save=True)):
        check_setup(passes)
    policy = setup.state.fsdp_plugin.mixed_precision_policy
    assert policy.param_dtype == bfloat16 and policy.output_dtype is None
