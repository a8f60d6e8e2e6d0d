"""Where checkpoints come from: files, directories of the transformers library, its hub."""
