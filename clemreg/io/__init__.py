"""Files in, files out: one module a format; `volumes`, `transforms` and `points` choose."""
