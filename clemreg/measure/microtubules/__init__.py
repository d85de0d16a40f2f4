"""Trace microtubules in a prediction: candidates, graph, integer program, tracks, tubes, score."""
