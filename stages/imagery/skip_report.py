"""The items of an imagery source that were skipped, counted and named by reason."""

MAX_NAMES = 20  # per reason


class SkipReport:
    """Collects skipped items.

    Attributes:
        reasons: reason -> {"count": items, "names": the first `MAX_NAMES` of them}, as REPORT.json
            holds it.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, dict] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one skipped item."""
        entry = self.reasons.setdefault(reason, {"count": 0, "names": []})
        entry["count"] += 1
        if len(entry["names"]) < MAX_NAMES:
            entry["names"].append(name)

    def __str__(self) -> str:
        """Such as `3 no captions (a.png ...); 1 image is empty (b.png ...)`, or `none`."""
        parts = [
            f"{entry['count']} {reason} ({entry['names'][0]} ...)"
            for reason, entry in self.reasons.items()
        ]
        return "; ".join(parts) or "none"
