"""API keys that operators make: who they are, and how much each may use."""
