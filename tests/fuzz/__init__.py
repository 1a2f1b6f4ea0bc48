"""The parsers of foreign bytes under random ones: with atheris for long, with hypothesis always."""
