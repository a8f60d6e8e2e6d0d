"""What a served model is: its graphs, their digests, and the rules of its family."""
