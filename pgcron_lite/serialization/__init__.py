"""Arguments and results as JSON, and back to the types of their annotations."""
