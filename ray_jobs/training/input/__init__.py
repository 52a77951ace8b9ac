"""What a training step receives: order of the slides, seeds, micro-batches read in advance."""
