"""`register`: where the run and the model are kept in MLflow, and what a version contains."""

from __future__ import annotations

from pipeline.config.sections.base import Name, Section


class Register(Section):
    """Where the run and the model are kept in MLflow, and what a version contains."""

    experiment: Name
    model: Name
    training_captions: bool
