"""Measure objects: shape, surface, contacts, skeletons, planarity, meshes."""
