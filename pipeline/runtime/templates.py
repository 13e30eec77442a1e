"""HTML pages from Jinja templates."""

from __future__ import annotations

from pathlib import Path


def render(template: Path, **values: object) -> str:
    """Return the page that a template renders.

    Captions and file names come from strangers, so all text is escaped. A missing value is an error.
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
