"""Whether mean and deviation can be those of images in [0, 1]."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from consensus_cli.errors import UserError

_SCALE = 255


def problems(mean: Sequence[float] | None, std: Sequence[float] | None) -> list[UserError]:
    """Returns what is wrong with `model.mean` and `model.std`; None stands for the dataset's or the weights' own."""
    found = []
    if mean is not None:
        found += _problem("mean", mean, lambda value: 0 <= value <= 1, "from 0 to 1", divide=False)
    if std is not None:
        # Deviations of 1 go with means on the scale to 255 where only the mean was subtracted.
        divide = mean is not None and any(value > 1 for value in mean)
        found += _problem("std", std, lambda value: 0 < value <= 1, "above 0 and at most 1", divide=divide)
    if mean and std and len(mean) != len(std):
        found.append(
            UserError(
                f"model.mean has {len(mean)} numbers, model.std {len(std)}", "give both one number per channel, or one"
            )
        )
    return found


def check_channels(mean: Sequence[float], std: Sequence[float], channels: int) -> None:
    """Checks that mean and deviation fit the images.

    Args:
        mean, std: one number for all channels, or one for each; three make three channels of grey images.
        channels: channels of the images.

    Raises:
        UserError: names the one that does not fit.
    """
    allowed = (1, 3) if channels == 1 else (1, channels)
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in allowed:
            raise UserError(
                f"model.{name} has {len(values)} numbers for images of {channels} "
                + ("channel" if channels == 1 else "channels"),
                f"give {allowed[1]} numbers, or one for all channels",
            )


def _problem(
    name: str, values: Sequence[float], allowed: Callable[[float], bool], in_words: str, *, divide: bool
) -> list[UserError]:
    key, given = f"model.{name}", f"model.{name}={_listed(values)}"
    if not values:
        return [UserError(f"{given} is empty", f"give {key} one number per channel, or null for the dataset's own")]
    if all(map(allowed, values)) and not (divide and all(value == 1 for value in values)):
        return []
    usual = all(map(math.isfinite, values)) and (min(values) > 0 or (name == "mean" and min(values) == 0))
    if usual and (max(values) > 2 or divide):
        return [
            UserError(
                f"{given} looks like the scale from 0 to 255; images here are in [0, 1]",
                f"divide by {_SCALE}: {key}={_listed([float(f'{value / _SCALE:.4g}') for value in values])}",
            )
        ]
    return [UserError(f"{given} is out of range", f"{key} must be {in_words}: images here are in [0, 1]")]


def _listed(values: Sequence[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"
