"""The rules of axe-core on a page of the browser tests.

`tests/axe/axe.min.js` is that file of the npm package axe-core 4.14.1, by Deque Systems, under the
Mozilla Public License 2.0, which lies beside it.
"""

from pathlib import Path

from playwright.sync_api import Page

AXE = Path(__file__).parent / "axe/axe.min.js"
# Gradio dims what a request will replace, and fades it in; half faded in, its contrast is too low.
SETTLED = """() => !document.querySelector(".pending") && document.getAnimations().every(
    (animation) => animation.effect.getComputedTiming().endTime === Infinity
        || animation.playState !== "running"
)"""


def violations(page: Page) -> list[str]:
    """Return each violated rule with the elements that violate it, once nothing fades in."""
    page.wait_for_function(SETTLED, timeout=60_000)  # ms, for busy machines
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return [
        f"{rule['id']} ({rule['help']}): {node['html'][:200]}"
        for rule in page.evaluate("axe.run()")["violations"]
        for node in rule["nodes"]
    ]
