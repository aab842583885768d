"""Fill the Jinja templates of `pages/`; styles and scripts are included: a page is one file."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

PAGES = Path(__file__).parent / "pages"


def render(name: str, filters: dict, **variables) -> str:
    """Return the text of a page.

    Args:
        name: file name of the template below `pages/`.
        filters: name -> function, for use in the template.
        variables: values for the template; text in them is escaped.

    Raises:
        jinja2.UndefinedError: where the template names a variable that is not given.
    """
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
    return environment.get_template(name).render(**variables)
