"""Self-supervised pretraining of the patch encoder."""
