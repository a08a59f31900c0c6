"""Who may come in, and where to: projects, API keys and their scopes, the door that checks them, the audit log.
Nothing here knows what a request asks for."""
