"""The verbs put together: training, and `run`, the whole job as resumable steps."""
