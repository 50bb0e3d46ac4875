"""Reads the device memory of a compiled program."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Counts bytes on the device.

    Attributes:
      arguments: inputs.
      results: outputs.
      temporaries: everything that lives only while the program runs, at its peak.
    """

    arguments: int
    results: int
    temporaries: int

    @property
    def peak(self) -> int:
        return self.arguments + self.results + self.temporaries


def memory_of(compiled) -> Memory:
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        results=found.output_size_in_bytes - found.alias_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
    )
