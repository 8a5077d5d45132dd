"""Events that are single vectors: directions and proportions."""

from pyrovae.conditional import Shape
from pyrovae.errors import ConfigError
from pyrovae.nn import dims

__all__: list[str] = []


def length(shape: Shape, part: str) -> int:
    """The length of a vector, at least 2; other shapes are refused in the name of ``part``."""
    sizes = dims(shape)
    if len(sizes) != 1 or sizes[0] < 2:
        raise ConfigError(
            f"{part}: expected the length of a vector, at least 2, received the shape {shape!r}; "
            "flatten the event, or take a family that scores its elements one by one"
        )
    return sizes[0]
