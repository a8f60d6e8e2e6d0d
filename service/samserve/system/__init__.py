"""What the operating system gives: files, addresses, limits."""
