"""Matrix products of a CPU library, which copies the weights into panels once there are more than a few rows.

    T = t_0 + F / (e_c P) + (bytes + r share(m) weights) / (e_m W),   share(m) = 1 / (1 + (m_0 / m)^6)

F, bytes and the weights' bytes are those of the product; r is what packing moves, in passes over the weights, m_0 the
number of rows from which the library packs. Arithmetic, packing and traffic add: a core does them one after another.

Source: torch 2.13 with MKL on one core, where 59 shapes between 1 and 512 rows showed a step between 3 and 4 rows that
no roofline has (2 rows run at the memory's bandwidth, 4 at half of it): median error 3 % on the shapes held out, with
three constants 22 %.
"""

from __future__ import annotations

import numpy as np

from ..calibration import Denominators
from ..estimate import Terms
from ..operators import Gemm
from ..parameters import PackedGemm
from .gemm import flops, traffic_bytes

SHARPNESS = 6  # of the step at m_0


def packed(table: Gemm, d: Denominators, p: PackedGemm) -> Terms:
    """Time of each row by the formula above; rows without work take no time."""
    share = 1.0 / (1.0 + (p.packing_rows / np.maximum(table.m, 1.0)) ** SHARPNESS)
    moved = traffic_bytes(table) + p.packing_passes * share * table.weight_bytes
    spent = Terms(
        compute_s=np.asarray(flops(table) / (p.compute_fraction * d.peak_flops_per_s)),
        memory_s=np.asarray(moved / (p.memory_fraction * d.bandwidth_bytes_per_s)),
        floor_s=np.full_like(moved, p.floor_s),
    )
    return spent.where(table.m > 0)
