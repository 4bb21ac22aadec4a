"""Where requests come in: the ASGI endpoints, the servers that run them, the supervisor that keeps those running."""
