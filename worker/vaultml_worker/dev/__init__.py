"""Stand-ins for development and the demo: an embedded broker, a file-backed Vault, an Agent that makes recordings."""
