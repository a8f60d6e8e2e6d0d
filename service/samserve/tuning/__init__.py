"""Fine-tuning of mask decoders on data sets: what `samserve tune` does, which requires torch."""
