"""The networks of `sam_tiny` for training and for the export, apart from its image encoder."""
