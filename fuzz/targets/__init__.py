"""One module for each part that reads bytes from outside."""
