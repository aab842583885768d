"""How much memory this process may still take, and whether weights fit into it."""

from pathlib import Path

import psutil

from stages.runtime.errors import exit_with_error

CGROUP = Path("/sys/fs/cgroup")  # that of this process, as a container sees it


def available_memory() -> int:
    """Bytes of memory, swap included, that are free on this machine or, if fewer, in its container.

    Files that the system keeps in memory count as free. Containers are those of cgroup v2.
    """
    free = psutil.virtual_memory().available + psutil.swap_memory().free
    limit = CGROUP / "memory.max"
    if not limit.exists() or limit.read_text().strip() == "max":
        return free
    stats = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    files = int(stats["inactive_file"]) + int(stats["active_file"])
    used = int((CGROUP / "memory.current").read_text()) - files
    return min(free, int(limit.read_text()) - used)


def refuse_too_large(label: str, needed: int) -> None:
    """Exit with an error where weights of so many bytes don't fit into the free memory.

    Linux would kill the process without a word. `label` is the start of the message.
    """
    free = available_memory()
    if needed > free:
        exit_with_error(
            f"{label}: its weights need {needed / 2**30:.1f} GiB of memory, and "
            f"{free / 2**30:.1f} GiB are free"
        )
