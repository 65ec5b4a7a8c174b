"""Judges a game day by the evidence that it left, and makes the page that shows it."""
