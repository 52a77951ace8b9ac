"""Memory of a training step: prediction, choice of the micro-batch, measured peaks."""
