"""The meter of false hits: how often answers of the semantic cache are wrong, and the bar that follows from it. Pure."""
