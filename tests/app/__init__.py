"""The service, from its tables to its HTTP."""
