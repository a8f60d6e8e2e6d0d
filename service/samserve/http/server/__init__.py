"""An ASGI server for HTTP/1.1 on the event loop of the gateway, with limits on every wait."""
