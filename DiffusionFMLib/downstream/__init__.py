"""What follows the encoder: predictions of a person's age, group or score from a scan, and what they must beat.

heads (on the frozen representation), finetune and lora (of the encoder's last blocks), baselines and resnet (without an
encoder) -> validation (folds, metrics, intervals).
"""

from __future__ import annotations
