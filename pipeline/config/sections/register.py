"""`register`: where the run and the model are kept in MLflow."""

from __future__ import annotations

from pipeline.config.sections.base import Name, Section


class Register(Section):
    """Where the run and the model are kept in MLflow."""

    experiment: Name
    model: Name
