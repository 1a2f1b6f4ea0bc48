"""A request's life: submitted, claimed, advanced, ended; and what the API tells of it."""
