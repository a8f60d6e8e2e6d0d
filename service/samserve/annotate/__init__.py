"""Masks for folders of images: a pipeline from a source to records, on one machine or many."""
