"""Count, mean and squared deviations of groups: what a group norm needs, in a form in which parts can be pooled.

Knows numbers only; nothing of how they are gathered from a tensor.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Moments:
    """What is known of some elements of each (sample, group).

    Attributes:
        count: elements behind each entry, the same for all.
        mean: (B, groups), float32 (float64 of float64 tensors).
        m2: (B, groups), the sum of squared deviations from the mean.
    """

    count: int
    mean: torch.Tensor
    m2: torch.Tensor

    def variance(self) -> torch.Tensor:
        """(B, groups), over all elements: the biased variance that norms use."""
        return self.m2 / self.count

    def rstd(self, eps: float) -> torch.Tensor:
        """(B, groups), one over the root of variance plus eps."""
        return torch.rsqrt(self.variance() + eps)


def merge_statistics(a: Moments, b: Moments) -> Moments:
    """The moments of the elements of both, as if gathered at once.

    Args:
        a, b: moments of disjoint elements, of the same groups.

    Returns:
        Their pool. Exact but for rounding, so the order of many merges does not matter.

    Raises:
        ValueError: the shapes differ.

    Source: Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"Moments of {tuple(a.mean.shape)} and {tuple(b.mean.shape)} groups do not pool; pass the same groups.")
    count = a.count + b.count
    apart = b.mean - a.mean
    return Moments(count, a.mean + apart * (b.count / count), a.m2 + b.m2 + apart * apart * (a.count * b.count / count))
