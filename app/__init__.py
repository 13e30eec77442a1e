"""The web page (Streamlit): caption photos, review captions, browse the data, compare and promote models."""
