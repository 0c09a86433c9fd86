"""Whether torch finds the devices that a recipe or a command names."""

from pipeline.errors import ConfigError


def check_device(name: str, device: str) -> None:
    """Refuses a GPU that is not there, before anything is paid for.

    Args:
        name: what names the device, for the message: a field of the recipe, or an option.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        ConfigError: torch finds no such device on this machine.
    """
    if device == "cpu":
        return
    import torch  # takes seconds

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise ConfigError(f"{name} is '{device}', and torch finds no GPU here: set it to cpu")
    if int(device.partition(":")[2] or 0) >= found:
        raise ConfigError(
            f"{name} is '{device}', and the last GPU that torch finds here is cuda:{found - 1}: name another"
        )
