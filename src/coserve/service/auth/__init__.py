"""Who may come in: API keys. Nothing here knows what a request asks for."""
