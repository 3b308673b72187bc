"""The diffusion transformer: representations of a scan with any directions and b-values.

drope (distances, rotary expansion) -> attention (the exact kernel) -> transformer -> volume (whole scans); checkpoint
(weights of ours and of the paper's public code).
"""

from __future__ import annotations
