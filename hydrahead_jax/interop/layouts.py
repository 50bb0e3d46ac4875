"""Converts between one Hugging Face weight and our parameters that hold the same numbers.

Every layout has `load(weight) -> our arrays` and `save(*our arrays) -> weight`, for NumPy and JAX
arrays alike. Hugging Face stores a projection as (outputs, inputs), heads merged.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Same:
    """Keeps the array unchanged."""

    def load(self, weight):
        return (weight,)

    def save(self, param):
        return param


@dataclasses.dataclass(frozen=True)
class Transposed:
    """Converts (outputs, inputs) <-> (inputs, outputs)."""

    def load(self, weight):
        return (weight.T,)

    def save(self, param):
        return param.T


@dataclasses.dataclass(frozen=True)
class Heads:
    """Converts (N * H, D) <-> [D, N, H]."""

    head_dim: int

    def load(self, weight):
        return (weight.reshape(-1, self.head_dim, weight.shape[-1]).transpose(2, 0, 1),)

    def save(self, param_DNH):
        return param_DNH.transpose(1, 2, 0).reshape(-1, param_DNH.shape[0])


@dataclasses.dataclass(frozen=True)
class HeadVector:
    """Converts (N * H,) <-> [N, H]."""

    head_dim: int

    def load(self, weight):
        return (weight.reshape(-1, self.head_dim),)

    def save(self, param_NH):
        return param_NH.reshape(-1)


@dataclasses.dataclass(frozen=True)
class OutputHeads:
    """Converts (D, N * H), heads in the teacher's order <-> one [N, H, D] per group of heads."""

    head_dim: int
    groups: tuple[tuple[int, ...], ...]

    def load(self, weight):
        rows_NHD = weight.reshape(weight.shape[0], -1, self.head_dim).transpose(1, 2, 0)
        return tuple(rows_NHD[list(group)] if group else rows_NHD[:0] for group in self.groups)

    def save(self, *parts_NHD):
        numpy = parts_NHD[0].__array_namespace__()
        grouped = [head for group in self.groups for head in group]
        order = numpy.asarray([grouped.index(head) for head in range(len(grouped))])
        rows_NHD = numpy.concatenate(parts_NHD)[order]
        return rows_NHD.transpose(2, 0, 1).reshape(rows_NHD.shape[-1], -1)


@dataclasses.dataclass(frozen=True)
class DepthwiseConv:
    """Converts (N * H, 1, W) <-> [W, N, H]."""

    head_dim: int

    def load(self, weight):
        return (weight[:, 0].T.reshape(weight.shape[-1], -1, self.head_dim),)

    def save(self, param_WNH):
        return param_WNH.reshape(param_WNH.shape[0], -1).T[:, None]


Layout = Same | Transposed | Heads | HeadVector | OutputHeads | DepthwiseConv
