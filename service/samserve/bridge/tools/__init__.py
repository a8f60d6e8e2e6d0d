"""One module for each annotation tool: its routes, and the conversion of prompts and masks."""
