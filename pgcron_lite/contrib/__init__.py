"""Integrations with other projects, one module each. They use the same hooks as the code of users."""
