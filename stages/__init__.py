"""The stages of the pipeline: `dvc.yaml` runs them, one script each.

Stages and tools import this package first, before anything heavy. So it checks here that this
Python can run them: another `python` may be first on PATH, or packages may be missing.
"""

# In syntax that even Python 2.7 reads, which some systems still call `python`.
import os
import re
import sys

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NEEDED = (3, 11)


def check_python():
    """End the process with one line where Python is too old or lacks packages of requirements.txt.

    Their versions are not checked: an environment of your own may have others.
    """
    if sys.version_info < NEEDED:
        return exit_with_advice("is Python " + sys.version.split()[0] + ", 3.11 or newer is needed")
    # Only benchmarks set this variable.
    missing = [] if "REMOTE_DIFFUSION_ANY_PACKAGES" in os.environ else missing_packages()
    if missing:
        names = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
        exit_with_advice("lacks packages of requirements.txt (" + names + ")")


def missing_packages():
    """Return the names of the packages in requirements.txt that this Python doesn't find."""
    from importlib.metadata import PackageNotFoundError, distribution

    requirements = os.path.join(REPOSITORY, "requirements.txt")
    if not os.path.exists(requirements):  # a copy of stages/ alone
        return []
    with open(requirements, encoding="utf-8") as file:
        names = re.findall(r"^\w[\w.-]*", file.read(), re.MULTILINE)
    missing = []
    for name in names:
        try:
            distribution(name)
        except PackageNotFoundError:
            missing.append(name)
    return missing


def exit_with_advice(fault):
    """End the process with one line: this Python, what is wrong with it, and what to type."""
    venv = os.path.join(REPOSITORY, ".venv")
    if os.path.exists(os.path.join(venv, "bin", "python")) and sys.prefix != venv:
        advice = "`source .venv/bin/activate`"
    else:
        advice = "`make setup`, or `pip install -r requirements.txt` in an environment of your own"
    sys.exit("error: " + sys.executable + " " + fault + "; type " + advice)


check_python()
