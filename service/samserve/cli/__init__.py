"""The command line: one module per command; `program` collects them."""
