"""Block by block: which boxes, in which order, and what is finished."""
