"""Geometry of periodic cells, vectorised over any leading batch dimensions.

Conventions: lattice rows are the cell vectors in Å; angles are radians, ordered (α, β, γ) with α between b and c, β
between a and c, γ between a and b; a lattice built from parameters has c along z and a in the xz plane (pymatgen's).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

MIN_GRAM_EIGENVALUE = 0.05
"""Smallest eigenvalue that `bound_angles` leaves in the matrix of cosines; the flattest Niggli cells have 0.25."""


def lattice_from_parameters(lengths: Float[Tensor, "*B 3"], angles: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3 3"]:
    """Build cell matrices from lengths in Å and angles in radians.

    The result equals `pymatgen.core.Lattice.from_parameters`. Angles that no cell can have give NaN-free but degenerate
    matrices (the last component is clamped at 0); pass them through `bound_angles` first where they are predictions.
    """
    a, b, c = lengths.unbind(-1)
    cos_alpha, cos_beta, cos_gamma = torch.cos(angles).unbind(-1)
    sin_alpha, sin_beta, _ = torch.sin(angles).unbind(-1)
    cos_gamma_star = ((cos_alpha * cos_beta - cos_gamma) / (sin_alpha * sin_beta)).clamp(-1.0, 1.0)
    sin_gamma_star = torch.sqrt((1.0 - cos_gamma_star**2).clamp_min(0.0))
    zero = torch.zeros_like(a)
    rows = (
        torch.stack((a * sin_beta, zero, a * cos_beta), dim=-1),
        torch.stack((-b * sin_alpha * cos_gamma_star, b * sin_alpha * sin_gamma_star, b * cos_alpha), dim=-1),
        torch.stack((zero, zero, c), dim=-1),
    )
    return torch.stack(rows, dim=-2)


def lattice_to_parameters(lattices: Float[Tensor, "*B 3 3"]) -> tuple[Float[Tensor, "*B 3"], Float[Tensor, "*B 3"]]:
    """Return (lengths in Å, angles in radians) of cell matrices; the inverse of `lattice_from_parameters`."""
    lengths = torch.linalg.vector_norm(lattices, dim=-1)
    unit = lattices / lengths.unsqueeze(-1)
    a, b, c = unit.unbind(-2)
    # 2·atan2(|u-v|, |u+v|) keeps full precision where acos(u·v) loses half the digits.
    pairs = ((b, c), (a, c), (a, b))
    angles = [2.0 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) for u, v in pairs]
    return lengths, torch.stack(angles, dim=-1)


def bound_angles(angles: Float[Tensor, "*B 3"]) -> Float[Tensor, "*B 3"]:
    """Move angle triples (radians) that no sensible cell has to the nearest ones on the way to an orthogonal cell.

    The Gram matrix of the unit cell vectors, G = [[1, cos γ, cos β], [cos γ, 1, cos α], [cos β, cos α, 1]], must be
    positive definite. Where its smallest eigenvalue λ is below `MIN_GRAM_EIGENVALUE` = ε the cosines are multiplied by
    s = (1 - ε) / (1 - λ), which brings it to exactly ε; all other triples come back unchanged.
    """
    cos_alpha, cos_beta, cos_gamma = torch.cos(angles).unbind(-1)
    one = torch.ones_like(cos_alpha)
    rows = (
        torch.stack((one, cos_gamma, cos_beta), dim=-1),
        torch.stack((cos_gamma, one, cos_alpha), dim=-1),
        torch.stack((cos_beta, cos_alpha, one), dim=-1),
    )
    gram = torch.stack(rows, dim=-2)
    # The eigenvalues of NaN are an error, not NaN, which would hide where it came from: it is to come back as it was.
    finite = torch.isfinite(gram).all(dim=-1, keepdim=True).all(dim=-2, keepdim=True)
    smallest = torch.linalg.eigvalsh(torch.where(finite, gram, torch.eye(3).to(gram)))[..., :1]
    in_range = (angles > 0.0) & (angles < math.pi)
    keep = (smallest >= MIN_GRAM_EIGENVALUE) & in_range.all(dim=-1, keepdim=True)
    scale = ((1.0 - MIN_GRAM_EIGENVALUE) / (1.0 - smallest).clamp_min(1e-6)).clamp(max=1.0)
    return torch.where(keep, angles, torch.acos(torch.cos(angles) * scale))


def wrap(frac_coords: Float[Tensor, "*N 3"]) -> Float[Tensor, "*N 3"]:
    """Wrap fractional coordinates into [0, 1); idempotent, and never returns 1.0 for tiny negative input."""
    wrapped = frac_coords - torch.floor(frac_coords)
    return torch.where(wrapped >= 1.0, torch.zeros_like(wrapped), wrapped)


def periodic_difference(a: Float[Tensor, "*#N 3"], b: Float[Tensor, "*#N 3"]) -> Float[Tensor, "*M 3"]:
    """Return a - b as the fractional displacement in [-0.5, 0.5] per axis, so that 0.999 and 0.001 differ by 0.002."""
    difference = a - b
    return difference - torch.round(difference)


def image_range(lattice: Float[Tensor, "3 3"], radius: float) -> list[int]:
    """Return how many cells to look at along each axis so that no point within `radius` Å of the cell is missed."""
    reciprocal_lengths = torch.linalg.inv(lattice.double()).norm(dim=0)
    return [max(1, math.ceil(radius * float(value) + 0.5)) for value in reciprocal_lengths]


def minimum_image_distances(
    lattice: Float[Tensor, "3 3"], frac_a: Float[Tensor, "M 3"], frac_b: Float[Tensor, "K 3"]
) -> Float[Tensor, "M K"]:
    """Return the shortest distance in Å between every pair over all periodic images, correct for any cell shape.

    The images searched cover the longest of the wrapped displacements, so skewed cells need no reduction first.
    """
    difference = periodic_difference(frac_a[:, None].double(), frac_b[None].double())
    cell = lattice.double()
    radius = float((difference @ cell).norm(dim=-1).max()) if difference.numel() else 0.0
    images = _images(image_range(lattice, radius), device=lattice.device)
    best = torch.full(difference.shape[:2], torch.inf, dtype=torch.float64, device=lattice.device)
    for block in images.split(64):
        distances = ((difference[:, :, None] + block) @ cell).norm(dim=-1)
        best = torch.minimum(best, distances.amin(dim=-1))
    return best.to(lattice.dtype)


def _images(counts: list[int], device: torch.device) -> Float[Tensor, "I 3"]:
    # A cell so flat that this many images matter is absurd; the limit bounds memory and is never met by a real crystal.
    axes = [torch.arange(-min(n, 10), min(n, 10) + 1, dtype=torch.float64, device=device) for n in counts]
    return torch.cartesian_prod(*axes)


def random_rotations(count: int, generator: torch.Generator) -> Float[Tensor, "count 3 3"]:
    """Draw proper rotation matrices from the uniform (Haar) distribution on SO(3), as normalised Gaussian quaternions.

    Source: Shoemake, "Uniform random rotations", Graphics Gems III (1992).
    """
    quaternions = torch.randn(count, 4, generator=generator, device=generator.device)
    w, x, y, z = torch.nn.functional.normalize(quaternions, dim=-1).unbind(-1)
    entries = (
        1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w),
        2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w),
        2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y),
    )  # fmt: skip
    return torch.stack(entries, dim=-1).reshape(count, 3, 3)
