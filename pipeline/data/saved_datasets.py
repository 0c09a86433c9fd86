"""Datasets that ``save_to_disk`` wrote: their splits and slices of them, and which configuration they are."""

from typing import Any

from pipeline.errors import ConfigError

Dataset = Any
"""A dataset of the ``datasets`` library, which is imported only when there is one to read."""


def open_saved(directory: str, subset: str | None, split: str) -> Dataset:
    """Opens a split, or a slice of splits such as ``train[:3]`` or ``train[:50%]+test``.

    A dataset that was saved without a name for its split is taken as ``train``.

    Raises:
        ConfigError: it has no such split, or is of another configuration than the subset names.
    """
    import datasets

    try:
        saved = datasets.load_from_disk(directory)
    except IndexError as error:  # what the library makes of a split without a file
        raise ConfigError(f"the dataset '{directory}', or a split of it: there is no row in it") from error
    splits = dict(saved) if isinstance(saved, datasets.DatasetDict) else {_split_name(saved): saved}
    for part in splits.values():
        if subset is not None and part.info.config_name != subset:
            named = f"of '{part.info.config_name}'" if part.info.config_name else "without a name for its configuration"
            raise ConfigError(
                f"the dataset '{directory}' was saved to disk {named}, so that prompts.subset '{subset}' chooses "
                "nothing: leave it out, or save that configuration"
            )
    try:
        slices = datasets.ReadInstruction.from_spec(split).to_absolute({n: len(part) for n, part in splits.items()})
    except (AssertionError, KeyError, ValueError) as error:
        raise ConfigError(
            f"the dataset '{directory}' (split '{split}') cannot be read: it was saved to disk with "
            f"{', '.join(f'{name} ({len(part)} rows)' for name, part in splits.items())}; {error}"
        ) from error
    parts = [splits[part.splitname].select(range(part.from_, part.to)) for part in slices]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _split_name(dataset: Dataset) -> str:
    """Names the split that a dataset, or a slice such as ``test[:9]``, was saved from; ``train`` if none is known."""
    name = str(dataset.split or "").partition("[")[0]
    return name if name.isidentifier() else "train"
