"""Write records as text, JSON lines or CSV."""
