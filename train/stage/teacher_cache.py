"""Which teacher cache a stage reads."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """Attributes:
    folder: made by `python -m train cache-teacher`.
    tokens: kept at each position; the probability of all others is kept as one number.
    """

    folder: str
    tokens: int = 64
