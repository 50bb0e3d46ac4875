"""Defines how a run is kept going; no setting changes the result."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Says how a run is kept going.

    Attributes:
      keep_checkpoints: number of newest checkpoints that stay.
      max_skipped: steps in a row whose gradients are not finite, after which the run stops.
      step_timeout: seconds that a step may take, compiling excluded, before the processes of a run
        find out which of them is late, say so and end.
      peer_timeout: seconds after which a process that is silent counts as dead.
      wandb: project on Weights & Biases that gets the metrics too.
    """

    keep_checkpoints: int = 3
    max_skipped: int = 10
    step_timeout: float = 600.0
    peer_timeout: float = 60.0
    wandb: str | None = None

    def __post_init__(self):
        if self.keep_checkpoints < 1 or self.max_skipped < 1:
            raise ValueError("keep_checkpoints and max_skipped must be 1 or more")
        if self.step_timeout <= 0:
            raise ValueError("step_timeout must be more than 0 seconds")
        if not 3 <= self.peer_timeout <= 300:
            raise ValueError("peer_timeout must be between 3 and 300 seconds")
