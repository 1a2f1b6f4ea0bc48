"""What Prometheus can ask for; `docs/operations.md` says what each number is for."""
