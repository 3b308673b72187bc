"""``SampleData``: remembers the sources that modules register; there is no panel that offers them."""

from __future__ import annotations

from typing import Any

sources: list[dict[str, Any]] = []
"""What was registered, in order."""


class SampleDataLogic:
    """Stands in for ``SampleData.SampleDataLogic``; downloading is left out."""

    @staticmethod
    def registerCustomSampleDataSource(category: str = "Custom", sampleName: str | None = None, **details: Any) -> None:
        """Remember a source."""
        sources.append({"category": category, "sampleName": sampleName, **details})
