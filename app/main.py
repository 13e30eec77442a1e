"""The script that Streamlit runs for every visitor and every click."""

from __future__ import annotations

from app.frame import main

main()
