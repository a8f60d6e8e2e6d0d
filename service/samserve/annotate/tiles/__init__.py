"""Images that exceed the limits of a server, or whose objects are small: read and sent in tiles."""
