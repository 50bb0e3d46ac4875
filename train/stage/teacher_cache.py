"""Names the teacher cache that a stage reads."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherCache:
    """Names a teacher cache, and how many tokens it holds at each position.

    Attributes:
      folder: folder made by `python -m train cache-teacher`.
      tokens: tokens saved at each position; the probability of all others is saved as one number.
    """

    folder: str
    tokens: int = 64
