"""Self-supervised pretraining of the patch encoder, in one process."""
