"""The table of a rehearsal: what each stage took, and what the full run will take."""

from dataclasses import dataclass, field

from tools.cache import format_size
from tools.rehearsal.measuring import Measurement

HOUR = 3600
HEADER = (
    "| stage | rehearsed | peak memory | GPU | disk | resume cache | work | full run | full disk | "
    "full cache |"
)
RULE = "|---|---|---|---|---|---|---|---|---|---|"


@dataclass
class Row:
    """A stage's row.

    Attributes:
        stage: its name.
        measured: None where it was not run.
        disk: bytes of its outputs.
        unit: what its work is counted in; "" where its time is taken to be fixed.
        done: units of the rehearsal.
        full: units of the full run.
        unit_seconds: seconds a unit.
        disk_ratio: size of the full run's outputs over that of the rehearsal's; 1 where outputs
            grow neither with images nor with the layers of models.
        full_cache: bytes that the resume cache of the full run holds at most.
        notes: what stands in for something, and what else there is to know.
        fault: why it failed or was not rehearsed; "" where it succeeded.
        full_fault: why the full run would stop there; the rehearsal goes on all the same.
        lacks_time: whether `full_seconds` leaves out the units that were cut.
    """

    stage: str
    measured: Measurement | None = None
    disk: int = 0
    unit: str = ""
    done: float = 0
    full: float = 0
    unit_seconds: float = 0
    disk_ratio: float = 1
    full_cache: float = 0
    notes: list[str] = field(default_factory=list)
    fault: str = ""
    full_fault: str = ""
    lacks_time: bool = False

    @property
    def full_seconds(self) -> float:
        """The time of the full run: the measured time, plus that of the units that were cut."""
        if self.measured is None:
            return 0
        return self.measured.seconds + (self.full - self.done) * self.unit_seconds

    @property
    def full_disk(self) -> float:
        """Bytes of the outputs of the full run: they grow with images, not with steps."""
        return self.disk * self.disk_ratio


def render(rows: list[Row], title: str) -> str:
    """The table in Markdown, with the faults below it."""
    lines = [title, "", HEADER, RULE]
    for row in rows:
        if row.measured is None or row.fault:
            seconds = duration(row.measured.seconds) if row.measured else ""
            lines.append(f"| {row.stage} | {seconds} | **{row.fault}** | | | | | | | |")
            continue
        taken = row.measured
        gpu = "" if taken.gpu_memory is None else format_size(taken.gpu_memory)
        work = f"{row.done:,.0f} of {row.full:,.0f} {row.unit}" if row.unit else ""
        cells = [
            row.stage,
            duration(taken.seconds),
            format_size(taken.memory),
            gpu,
            format_size(row.disk),
            format_size(taken.cache) if taken.cache >= 1e6 else "",
            work,
            "**stops**" if row.full_fault else duration(row.full_seconds),
            format_size(row.full_disk),
            format_size(row.full_cache) if row.full_cache >= 1e6 else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    notes = [f"- {row.stage}: {note}" for row in rows for note in row.notes]
    notes += [f"- {row.stage}: **{row.full_fault}**" for row in rows if row.full_fault]
    return "\n".join([*lines, *([""] if notes else []), *notes])


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:.1f} h"
