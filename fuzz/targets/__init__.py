"""One module for each part that reads untrusted bytes."""
