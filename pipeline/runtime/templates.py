"""HTML pages out of templates."""

from __future__ import annotations

from pathlib import Path


def render(template: Path, **values: object) -> str:
    """The page that a template makes of the values.

    Captions and names of files come from strangers, so all text is escaped. A value that the template asks for and
    that is not given is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(values)
