"""Filling the templates of `pages/`: styles and scripts are included, so that a page is one file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGES = Path(__file__).parent / "pages"


def render(name: str, filters: dict, **content) -> str:
    """A page as text. What it is given is escaped; a name that the template misses is an error."""
    environment = Environment(
        loader=FileSystemLoader(PAGES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False, "separators": (",", ":")}
    environment.filters |= filters
    return environment.get_template(name).render(**content)
