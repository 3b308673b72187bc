"""The generative prior: what a neighbourhood says about a voxel, fused with the voxel's own measurements by a solve.

coordinates (whitened parameters) -> information (what the data say) -> network (what the neighbours say) -> posterior
-> twicing (what it leaves of the neighbours' measurements alike).
"""

from __future__ import annotations
