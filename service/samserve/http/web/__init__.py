"""The web page on the HTTP listener: its files, and its sessions."""
