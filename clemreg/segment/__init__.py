"""The network that finds mitochondria: training, models, blockwise prediction. torch lives here."""
