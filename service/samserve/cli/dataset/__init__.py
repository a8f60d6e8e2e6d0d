"""`samserve dataset`: conversion, check and contact sheets of data sets."""
