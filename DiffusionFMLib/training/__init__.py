"""Training of the library's models, on simulated anatomy and on scans: one process, or many by the launcher's flags."""

from __future__ import annotations
