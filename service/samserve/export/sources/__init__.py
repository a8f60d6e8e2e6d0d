"""Sources of checkpoints: files, directories of the transformers library, the Hugging Face hub."""
