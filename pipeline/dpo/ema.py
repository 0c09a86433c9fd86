"""A moving average of the policies, as a checkpoint: the reference that follows slowly."""

import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from pipeline.model.checkpoint_files import SMALL_FILES, weight_files


def blend(average: Path, policy: Path, target: Path, *, decay: float) -> None:
    """Writes ``decay * average + (1 - decay) * policy``, computed in float32, with the policy's small files.

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
            name: (decay * old[name].float() + (1 - decay) * tensor.float()).to(tensor.dtype)
            for name, tensor in new.items()
        }
        save_file(blended, target / path.name, metadata={"format": "pt"})
