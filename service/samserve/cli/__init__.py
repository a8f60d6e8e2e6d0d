"""The command line: one module per command; `program` registers them."""
