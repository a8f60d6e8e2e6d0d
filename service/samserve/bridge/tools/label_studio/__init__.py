"""Label Studio's ML backend, and pre-annotation of its projects."""
