"""From predictions to objects: smooth, threshold, mask, label, fill, choose; block by block."""
