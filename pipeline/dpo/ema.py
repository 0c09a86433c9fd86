"""A moving average of the policies, as a checkpoint: the reference that follows slowly."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from pipeline.model.checkpoint_files import SMALL_FILES, name_dtype, stored_dtype, weight_files


def blend(average: Path, policy: Path, target: Path, *, decay: float) -> None:
    """Writes ``decay * average + (1 - decay) * policy`` in float32, with the policy's small files.

    Args:
        average, policy: checkpoints of models of the same shape, saved in the same way.
        target: an empty directory.
    """
    for pattern in SMALL_FILES:
        for path in policy.glob(pattern):
            shutil.copyfile(path, target / path.name)
    for path in weight_files(policy):
        old, new = load_file(average / path.name), load_file(path)
        blended = {
            name: (decay * old[name].float() + (1 - decay) * tensor.float()).to(_at_least_float32(tensor.dtype))
            for name, tensor in new.items()
        }
        save_file(blended, target / path.name, metadata={"format": "pt"})
    if stored_dtype(target) != stored_dtype(policy):
        name_dtype(target, stored_dtype(target))


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """Returns the precision of an average: bfloat16 would round to nothing what a round moves it by."""
    return torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else dtype
