"""The door: the HTTP API, its client and the command line."""
