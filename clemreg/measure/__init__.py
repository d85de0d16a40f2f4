"""Measure organelles: sizes, shapes, contacts, ribosomes, microtubules."""
